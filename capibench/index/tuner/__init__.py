"""Builds and times what `capibench.index.tuning` decides between."""
