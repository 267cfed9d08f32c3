"""What Prometheus reads at `/metrics` of `--http`."""
