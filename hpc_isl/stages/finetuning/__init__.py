"""What `finetune` and its sweeps are made of: boxes, setting, work, scores."""
