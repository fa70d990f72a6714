"""The phases of a one-shot search on a cluster."""
