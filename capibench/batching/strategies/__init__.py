"""One strategy a file, named like its yaml."""
