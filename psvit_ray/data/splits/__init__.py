"""Which images are for training, for ranking (hold-out) and for the final test."""
