"""table: objects, fields and wells, with heat maps."""
