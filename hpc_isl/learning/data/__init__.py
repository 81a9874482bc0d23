"""From plates to crops: splits, views, sampling, augmentation."""
