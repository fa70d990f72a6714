"""Batch work over many images in Ray: writing shards, inference."""
