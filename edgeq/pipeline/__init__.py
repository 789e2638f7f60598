"""The pipeline: the only place that knows the order of the steps."""

from edgeq.pipeline.build import build

__all__ = ["build"]
