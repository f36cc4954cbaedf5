"""What every policy would have hit on a recorded stream of keys, without models and values."""
