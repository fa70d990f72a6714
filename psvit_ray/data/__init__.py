"""Data: from stored images and labels to batches."""
