"""Objects: from distance maps to labels, their features, and scores of predictions."""
