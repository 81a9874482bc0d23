"""Prediction of whole fields, tile by tile."""
