"""Cheaper weights: one method a file."""
