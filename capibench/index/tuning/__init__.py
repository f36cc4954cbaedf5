"""How an index, or the effort of its searches, is chosen: pure searches over measurements."""
