"""Transforms between spaces, their algebra, and the graph that joins the spaces of a study."""

from histomri.transforms.affine import Affine
from histomri.transforms.base import Transform
from histomri.transforms.chain import Chain
from histomri.transforms.displacement import DisplacementField

__all__ = ["Affine", "Chain", "DisplacementField", "Transform"]
