"""finetune: segmentation from few annotations."""
