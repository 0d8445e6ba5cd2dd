"""Affine transforms of 2D and 3D points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from histomri.transforms.base import Float, Transform


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """``q = A p + t`` as a homogeneous matrix, (ndim + 1, ndim + 1), on points in array order and mm.

    Raises ``ValueError`` for a matrix that is not square and homogeneous, not finite, or singular.
    """

    matrix: Float
    from_space: str = ""
    to_space: str = ""

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, float)
        object.__setattr__(self, "matrix", matrix)
        n = matrix.shape[0]
        if matrix.shape not in ((3, 3), (4, 4)) or not np.allclose(matrix[-1], np.eye(n)[-1]):
            raise ValueError(f"An affine needs a 3 x 3 or 4 x 4 homogeneous matrix, found {matrix.shape}:\n{matrix}")
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
            raise ValueError(f"An affine must be finite and invertible, found\n{matrix}")

    @staticmethod
    def identity(ndim: int, from_space: str = "", to_space: str = "") -> Affine:
        """The transform that moves nothing."""
        return Affine(np.eye(ndim + 1), from_space, to_space)

    @staticmethod
    def from_parts(linear: ArrayLike, translation: ArrayLike, from_space: str = "", to_space: str = "") -> Affine:
        """From the (ndim, ndim) linear part and the translation in mm."""
        linear = np.asarray(linear, float)
        matrix = np.eye(len(linear) + 1)
        matrix[:-1, :-1], matrix[:-1, -1] = linear, translation
        return Affine(matrix, from_space, to_space)

    @property
    def ndim(self) -> int:
        """Number of dimensions of the points."""
        return len(self.matrix) - 1

    @property
    def linear(self) -> Float:
        """The (ndim, ndim) linear part."""
        return self.matrix[:-1, :-1]

    @property
    def translation(self) -> Float:
        """The translation in mm, (ndim,)."""
        return self.matrix[:-1, -1]

    def map(self, points: ArrayLike) -> Float:
        """``A p + t`` for points of shape (..., ndim)."""
        return np.asarray(points, float) @ self.linear.T + self.translation

    def inverse(self) -> Affine:
        """The exact inverse."""
        return Affine(np.asarray(np.linalg.inv(self.matrix), np.float64), self.to_space, self.from_space)


def nearest_rotation(a: Float, b: Float, mirrored: bool = False) -> tuple[Float, float]:
    """The rotation R, (ndim, ndim), that brings points a (n, ndim) nearest to b, and the sum of ``b . R a`` (Umeyama 1991).

    Both lie about their means. ``mirrored``: R turns over too.
    """
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.ones(a.shape[1])
    sign[-1] = np.sign(np.linalg.det(u @ vt)) * (-1.0 if mirrored else 1.0)
    return (u * sign) @ vt, float((s * sign).sum())
