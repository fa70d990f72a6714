"""Checks of a cluster, host by host, and of the bandwidth between hosts."""
