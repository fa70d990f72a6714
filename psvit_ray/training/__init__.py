"""A training run in plain PyTorch."""
