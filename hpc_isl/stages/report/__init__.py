"""report: one page about a sweep."""
