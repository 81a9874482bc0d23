"""What `pretrain` is made of: the work, its results, the virtual stain."""
