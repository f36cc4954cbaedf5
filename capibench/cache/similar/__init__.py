"""Answers to similar questions, within a budget of false hits."""
