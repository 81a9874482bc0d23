"""What readers of a fine-tuning sweep know of it: its scores, and the element that is its model."""

from __future__ import annotations

FEW = 6
"""With fewer annotated fields than this, one field is left out in turn."""
FINAL = "final"
"""The element that learns from all annotations: the model of the sweep."""
SCORES = ("iou", "mAP", "AP50", "AP75", "F1", "PQ", "SQ", "RQ", "count_error")
"""Of a test box, as `scores.csv` has them."""
MAIN = {"nuclei": "iou", "cells": "mAP"}
"""The score that decides, by the kind of objects."""
