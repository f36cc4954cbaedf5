"""RAM before SSD: bytes, records, staleness, eviction and damage."""
