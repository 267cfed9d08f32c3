"""What is wrong with this host, as far as networks of containers go: `netplug doctor`."""
