"""The training loop and what it feeds on."""
