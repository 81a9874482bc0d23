"""annotate: labels are imported, drafted and exported."""
