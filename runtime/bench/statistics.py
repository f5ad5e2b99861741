"""Means and percentiles under the names that vLLM's benchmark gives them."""

from collections.abc import Sequence

import numpy as np


def summary(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """`mean_ttft_ms`, `median_...`, `std_...` and `p99_...`; zeros where nothing was measured."""
    values = np.asarray(seconds, np.float64) * 1000.0 if len(seconds) else np.zeros(1)
    found = {
        f"mean_{name}_ms": float(values.mean()),
        f"median_{name}_ms": float(np.median(values)),
        f"std_{name}_ms": float(values.std()),
    }
    for percentile in percentiles:
        found[f"p{percentile:g}_{name}_ms"] = float(np.percentile(values, percentile))
    return found


def percentiles_of(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles 10 to 99, by their number as text."""
    wanted = (10, 25, 50, 75, 90, 99)
    return {str(p): float(v) for p, v in zip(wanted, np.percentile(seconds, wanted), strict=True)}
