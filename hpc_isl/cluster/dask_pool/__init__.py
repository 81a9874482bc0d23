"""A pool of worker processes over nodes, through Dask."""
