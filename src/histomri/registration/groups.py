"""The groups of linear transforms, by their generators."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
MODELS = ("translation", "rigid", "similarity", "scaling", "affine")


def generators(model: str, ndim: int) -> list[Float]:
    """Lie algebra basis of a model as (ndim + 1, ndim + 1) matrices. ``scaling`` is rigid plus one scale per axis.

    Raises ``ValueError`` for an unknown model.
    """
    if model not in MODELS:
        raise ValueError(f"Unknown model {model!r}; expected one of {', '.join(MODELS)}.")

    def unit(i: int, j: int) -> Float:
        out = np.zeros((ndim + 1, ndim + 1))
        out[i, j] = 1.0
        return out

    basis = [unit(i, ndim) for i in range(ndim)]
    if model == "affine":
        return basis + [unit(i, j) for i in range(ndim) for j in range(ndim)]
    if model != "translation":
        basis += [unit(i, j) - unit(j, i) for i in range(ndim) for j in range(i + 1, ndim)]
    if model == "similarity":
        basis.append(sum((unit(i, i) for i in range(ndim)), np.zeros((ndim + 1, ndim + 1))))
    if model == "scaling":
        basis += [unit(i, i) for i in range(ndim)]
    return basis
