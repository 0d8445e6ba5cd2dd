"""Composition of transforms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from histomri.transforms.base import Float, Transform


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Transforms applied one after another, the first of ``steps`` first.

    Raises ``ValueError`` when it is empty or where the named spaces of two steps do not meet.
    """

    steps: tuple[Transform, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("A chain needs at least one transform.")
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            if before.to_space and after.from_space and before.to_space != after.from_space:
                raise ValueError(f"A transform to {before.to_space!r} cannot be followed by one from {after.from_space!r}.")

    @staticmethod
    def steps_of(transform: Transform) -> tuple[Transform, ...]:
        """The steps of a chain, or the transform itself as the only step."""
        return transform.steps if isinstance(transform, Chain) else (transform,)

    @property
    def from_space(self) -> str:  # type: ignore[override]
        """The space of the first step."""
        return self.steps[0].from_space

    @property
    def to_space(self) -> str:  # type: ignore[override]
        """The space that the last step leads to."""
        return self.steps[-1].to_space

    @property
    def ndim(self) -> int:
        """Number of dimensions of the points."""
        return self.steps[0].ndim

    def map(self, points: ArrayLike) -> Float:
        """All steps in order."""
        points = np.asarray(points, float)
        for step in self.steps:
            points = step.map(points)
        return points

    def inverse(self) -> Chain:
        """The inverses in reverse order."""
        return Chain(tuple(step.inverse() for step in reversed(self.steps)))
