"""What the synthetic plate is made of: cells, optics, layout, the vendor's index."""
