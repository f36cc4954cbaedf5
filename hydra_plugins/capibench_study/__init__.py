"""Hydra finds the study sweeper here."""
