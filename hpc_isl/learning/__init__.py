"""From stored pixels to crops, networks and predictions."""
