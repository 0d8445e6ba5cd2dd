"""Part of the stage ``mri``: the best poses of a block as pictures, so that a person can tell which of them is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.io.atomic import replacing
from histomri.stages.pictures import SECTION_COLOUR, outline

if TYPE_CHECKING:
    from histomri.core import Image
    from histomri.registration.pose import PoseCandidate, Scaled

Rgb = NDArray[np.uint8]
MOST = 4
SIDE_PX = 300
LABEL_PX = 26
WHITE = (255, 255, 255)


def write_pose_pictures(path: Path, stack: Scaled, mri: Scaled, candidates: Sequence[PoseCandidate], voxel_mm: float) -> None:
    """A PNG: the block's middle plane (above) and a cut along its axis (below), then the MRI there by each of the best poses.

    At most ``MOST`` candidates that are different poses, best first, with the outline of the block's tissue over each.
    """
    from histomri.registration.pose import distinct, warp_volume

    block, mask = stack.at(voxel_mm)
    shown = distinct(candidates, lambda c: c.block_to_mri, mask, MOST)
    image, tissue = mri.at(voxel_mm)
    columns = [_column(block.data, mask, "the block")]
    for rank, candidate in enumerate(shown, 1):
        here = warp_volume(image, tissue, candidate.block_to_mri, block.grid)[..., 0]
        hand = ", mirrored" if candidate.mirrored else ""
        columns.append(_column(here, mask, f"MRI {rank}: {candidate.quality:.2f}{hand}"))
    _write(path, np.hstack(columns))


def _column(data: NDArray[np.float32], mask: Image, label: str) -> Rgb:
    """A label, the middle plane and the cut along the axis of one volume in the block, (y, x, 3)."""
    middle = [round(float(n)) for n in np.argwhere(mask.data).mean(axis=0)]
    high = max(float(np.percentile(data[mask.data], 99)), 1e-6)
    planes = [_shown(data[middle[0]], mask.data[middle[0]], high), _shown(data[:, middle[1]], mask.data[:, middle[1]], high)]
    title = np.full((LABEL_PX, SIDE_PX, 3), 255, np.uint8)
    cv2.putText(title, label, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([title, *planes])


def _shown(plane: NDArray[np.float32], tissue: NDArray[np.bool_], high: float) -> Rgb:
    """A plane in grey on a square, as large as it fits, with the outline of the block's tissue."""
    scale = (SIDE_PX - 4) / max(plane.shape)
    size = (max(int(plane.shape[1] * scale), 1), max(int(plane.shape[0] * scale), 1))
    grey = np.ascontiguousarray(np.clip(plane / high, 0, 1) * 255, np.uint8)
    rgb: Rgb = np.repeat(np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR), np.uint8)[..., None], 3, axis=2)
    outline(rgb, cv2.resize(tissue.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0, SECTION_COLOUR)
    out = np.full((SIDE_PX, SIDE_PX, 3), WHITE, np.uint8)
    top, left = (SIDE_PX - size[1]) // 2, (SIDE_PX - size[0]) // 2
    out[top : top + size[1], left : left + size[0]] = rgb
    return out


def _write(path: Path, rgb: Rgb) -> None:
    done, coded = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
    assert done
    with replacing(path) as temporary:
        temporary.write_bytes(coded.tobytes())
