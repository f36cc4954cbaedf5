"""From rows to metrics with intervals."""
