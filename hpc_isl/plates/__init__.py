"""Plates: names and positions, vendors' exports, and their storage on disk as OME-Zarr."""
