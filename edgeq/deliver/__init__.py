"""Delivery of finished bundles: into an app's project, or over the air. Nothing here needs torch."""
