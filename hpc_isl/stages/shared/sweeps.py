"""Constants of a fine-tuning sweep that report and segment read too; alone, to be imported at no cost."""

from __future__ import annotations

FEW = 6
"""With fewer annotated fields than this, one field is left out in turn."""
FINAL = "final"
"""The element that learns from all annotations: the model of the sweep."""
SCORES = ("iou", "mAP", "AP50", "AP75", "F1", "PQ", "SQ", "RQ", "count_error")
"""The scores of a test box, as columns of `scores.csv`."""
MAIN = {"nuclei": "iou", "cells": "mAP"}
"""Kind of objects -> the score that decides which arm is best."""
