"""Runs as a user sees them: states, tables, progress, messages."""
