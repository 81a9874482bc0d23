"""export: labels and models for other programs."""
