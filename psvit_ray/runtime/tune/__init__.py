"""A search in Ray Tune."""
