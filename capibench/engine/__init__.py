"""Prompts to generated texts."""
