"""Splits: images for training, for validation (hold-out) and for the final test."""
