"""MLflow and Prometheus: runs, the store's address, the registry, gauges."""
