"""Tables and pictures of a one-shot search."""
