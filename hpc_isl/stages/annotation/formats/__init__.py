"""Readers of annotation files, one module for each family of formats; `families` is their table."""
