"""Bringing entries from SSD into RAM before they are asked for."""
