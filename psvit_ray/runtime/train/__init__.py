"""One training in Ray Train workers."""
