"""segment: whole plates."""
