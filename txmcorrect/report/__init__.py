"""Figures and pages; workflows hand over plain arrays."""
