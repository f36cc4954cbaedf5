"""Telling others about finished runs."""
