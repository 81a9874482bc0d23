"""pretrain: in silico labeling."""
