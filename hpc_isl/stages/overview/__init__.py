"""overview: one page about a plate, with thumbnails and heat maps."""
