"""Observers of activations, by the names that people write."""

from __future__ import annotations

from typing import Any

from edgeq.errors import EnvironmentProblem
from edgeq.scheme import ObserverName

# share of the observed values that the percentile range keeps; TensorRT's and ONNX Runtime's usual choice
PERCENTILE = 0.9999
_SEARCH = "_non_linear_param_search"


def activation_observer(name: ObserverName, base: Any, minmax: Any) -> Any:
    """Return the observer class for activations.

    Args:
        name: what the user chose.
        base: HistogramObserver of the library that prepares the graph (torch.ao for FX, torchao for PT2E).
        minmax: its MinMaxObserver.

    Raises:
        EnvironmentProblem: another torch, whose histogram cannot be cut.
    """
    if name == "percentile":
        return _percentile(base)
    return {"histogram": base, "minmax": minmax}[name]


def _percentile(base: Any) -> Any:
    """Return a histogram observer that cuts both tails instead of searching for the least error."""
    import torch

    if not hasattr(base, _SEARCH):
        what = f"{base.__module__}.{base.__name__} has no {_SEARCH}, which the percentile observer replaces"
        raise EnvironmentProblem(what, "use --observer histogram or minmax, or the torch that edgeq pins")

    class PercentileObserver(base):  # type: ignore[misc]  # the base is only known at run time
        """Keeps the central `PERCENTILE` of the observed values."""

        def _non_linear_param_search(self) -> tuple[Any, Any]:
            total = torch.cumsum(self.histogram.double(), dim=0)
            tail = (1 - PERCENTILE) / 2 * total[-1]
            low = int(torch.searchsorted(total, tail))
            high = int(torch.searchsorted(total, total[-1] - tail))
            width = (self.max_val - self.min_val) / self.bins
            return self.min_val + width * low, self.min_val + width * (min(high, self.bins - 1) + 1)

    return PercentileObserver
