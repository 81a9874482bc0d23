"""The first wing: what a plate is, how vendors write it, and how it lies on disk as OME-Zarr."""
