"""edgeq.toml and the command line to one configuration."""
