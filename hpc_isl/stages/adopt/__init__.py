"""adopt: a plate that another program wrote as OME-Zarr is used where it lies."""
