"""The parts that `tomo` is made of."""
