"""One run, plain PyTorch."""
