"""convert: a vendor's export becomes an OME-Zarr plate."""
