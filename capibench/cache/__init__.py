"""Caching: eviction policies that decide, tiers that act."""
