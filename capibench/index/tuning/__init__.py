"""How the query effort of an index is chosen: pure searches over measurements."""
