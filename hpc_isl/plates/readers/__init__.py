"""Vendors' exports, one file each: a folder becomes an `Export`."""
