"""Indexes kept in a folder: built by measurement, searched, changed, compared, optimized."""
