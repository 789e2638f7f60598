"""The release bundle: a deterministic writer, and a reader that verifies everything."""
