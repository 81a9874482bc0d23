"""Readers of vendors' exports, one file each: a folder becomes an `Export`."""
