"""The digits model: the embedded default that the README's first command packages."""
