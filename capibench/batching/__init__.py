"""Batching: strategies that decide, and the batcher that acts."""
