"""Images and labels, to batches."""
