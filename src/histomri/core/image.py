"""An array that never travels without its geometry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from histomri.core.grid import Grid


@dataclass(frozen=True, eq=False)
class Image:
    """A grid and the data on it.

    ``data`` has the grid's shape, or the grid's shape and one trailing channel axis; it may be a NumPy, CuPy, dask or
    zarr array. ``channels`` names the channels, empty for a single-channel image without a channel axis.
    """

    grid: Grid
    data: Any
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = self.grid.shape + ((len(self.channels),) if self.channels else ())
        if tuple(self.data.shape) != expected:
            raise ValueError(f"Image data must have shape {expected} to fit its grid, found {tuple(self.data.shape)}.")

    def crop(self, start: ArrayLike, stop: ArrayLike) -> Image:
        """The part between two indices (``stop`` exclusive)."""
        box = tuple(slice(int(a), int(b)) for a, b in zip(np.asarray(start), np.asarray(stop), strict=True))
        return replace(self, grid=self.grid.crop(start, stop), data=self.data[box])

    def astype(self, dtype: DTypeLike) -> Image:
        """The same image with its data converted."""
        return replace(self, data=self.data.astype(dtype))

    def with_data(self, data: Any, channels: tuple[str, ...] = ()) -> Image:
        """Other data on the same grid."""
        return Image(self.grid, data, channels)
