"""The second wing: from stored pixels to crops, networks and predictions."""
