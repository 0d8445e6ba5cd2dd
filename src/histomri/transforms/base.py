"""What every transform can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from histomri.transforms.chain import Chain

Float = NDArray[np.float64]


class Transform(ABC):
    """Maps points of ``from_space`` (fixed, output) to points of ``to_space`` (moving): it pulls.

    Points are (..., ndim) in mm and array order. A point that cannot be mapped comes out as NaN. An empty space name
    means "not named" and meets every space.
    """

    from_space: str
    to_space: str

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of dimensions of the points, 2 or 3."""

    @abstractmethod
    def map(self, points: ArrayLike) -> Float:
        """The mapped points, of the same shape."""

    @abstractmethod
    def inverse(self) -> Transform:
        """The transform from ``to_space`` back to ``from_space``."""

    def __matmul__(self, first: Transform) -> Chain:
        """``self @ first``: ``first`` is applied first. Refuses spaces that do not meet."""
        from histomri.transforms.chain import Chain

        return Chain((*Chain.steps_of(first), *Chain.steps_of(self)))
