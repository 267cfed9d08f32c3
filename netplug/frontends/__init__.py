"""Front ends: wire formats in, use cases out. They translate and decide nothing."""
