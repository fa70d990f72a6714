"""The Ray cluster: its hosts, resources, autoscaler and network."""
