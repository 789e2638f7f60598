"""Verification: the artifact itself, as written to disk, run by its own runtime in a child process."""
