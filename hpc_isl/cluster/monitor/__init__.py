"""What runs are doing: states, tables, progress, messages."""
