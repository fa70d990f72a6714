"""A trained network for others: write, load, other formats, inference."""
