"""The third wing: from maps to objects, and how good they are."""
