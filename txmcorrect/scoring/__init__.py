"""What `evaluate` does: against truth, on references alone, and against peers."""
