"""Numbers that say how good a reconstruction is: arrays and core types in, numbers out. No paths."""

from histomri.evaluation.acceptance import Evidence, Flag, Thresholds, flag_sections
from histomri.evaluation.overlap import best_threshold, dice, local_ncc, nmi
from histomri.evaluation.planes import plane_grid, section_on_plane, volume_on_plane
from histomri.evaluation.regularity import Deformation, TransformParts, contour_roughness, deformation, transform_parts
from histomri.evaluation.summary import robust_z, summarise

__all__ = [
    "Deformation",
    "Evidence",
    "Flag",
    "Thresholds",
    "TransformParts",
    "best_threshold",
    "contour_roughness",
    "deformation",
    "dice",
    "flag_sections",
    "local_ncc",
    "nmi",
    "plane_grid",
    "robust_z",
    "section_on_plane",
    "summarise",
    "transform_parts",
    "volume_on_plane",
]
