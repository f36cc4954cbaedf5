"""Passages, questions and what is relevant to what."""
