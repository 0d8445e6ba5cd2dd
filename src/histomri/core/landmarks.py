"""Named points in a space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points, (n, ndim) in mm and array order, of one space, and their names."""

    names: tuple[str, ...]
    points: NDArray[np.float64]
    space: str

    def __post_init__(self) -> None:
        if len(self.names) != len(self.points):
            raise ValueError(f"Landmarks need one name per point, found {len(self.names)} and {len(self.points)}.")

    def under(self, transform: Any) -> Landmarks:
        """The same landmarks mapped by a transform from their space."""
        if transform.from_space and self.space != transform.from_space:
            raise ValueError(f"Landmarks in {self.space!r} cannot be mapped by a transform from {transform.from_space!r}.")
        return replace(self, points=transform.map(self.points), space=transform.to_space)
