"""annotate: labels are imported, drafted and exported; fields to annotate next are proposed."""
