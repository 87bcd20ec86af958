"""One factor per unit, so that no unit contributes more than the clipping norm."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["clip_factors"]

NORM_FLOOR: Final = 1e-12
# Factors are shrunk by this much, so that rounding in float32 never lets a unit pass its clipping norm.
ROUNDING_MARGIN: Final = 1e-6


def clip_factors(norms: NDArray[np.float64], *, clipping_norm: float) -> NDArray[np.float64]:
    """Factor in [0, 1] per unit that brings its norm to at most `clipping_norm`.

    Guarantee: factor * norm <= clipping_norm for every finite norm.
    Edge cases: a norm of zero keeps its (zero) contribution; a norm that is not finite gives the factor 0.
    """
    factors = np.minimum(1.0, clipping_norm * (1 - ROUNDING_MARGIN) / np.maximum(norms, NORM_FLOOR))
    return np.where(np.isfinite(norms), factors, 0.0)
