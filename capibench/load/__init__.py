"""Arrivals, popularity and replay (pure), and the driver that issues them on schedule."""
