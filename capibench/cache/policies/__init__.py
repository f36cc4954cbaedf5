"""One eviction policy a file, named like its yaml."""
