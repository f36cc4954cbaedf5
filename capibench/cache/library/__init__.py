"""The cache for a program that does not use Hydra."""
