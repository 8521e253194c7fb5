"""What `prepare` is made of: collecting files, screening frames, pairing, storing."""
