"""Images as mixed Parquet shards: plan, file, manifest."""
