"""A name in use: lease, fence, signals, time budget."""
