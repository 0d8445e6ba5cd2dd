"""Contact sheets: every section of a study as a thumbnail with the outline of its tissue, to be glanced over in a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.core import InputError
from histomri.io.sections import SectionManifest, mask_on, open_level
from histomri.stages.cells import listed
from histomri.stages.pictures import data_address, outline

THUMB_PX = 112
DRAWN_PX = 2 * THUMB_PX  # the outline is drawn at twice the size and averaged down, for thin lines
OUTLINE = (0, 170, 60)


@dataclass(frozen=True)
class Thumbnail:
    """One section on the sheet: its row of ``sections.tsv`` in short, and its picture ("" where there is none)."""

    section: str
    block: str
    flags: tuple[str, ...]
    notes: str
    image: str
    width: int
    height: int


def thumbnails(rows: Sequence[Mapping[str, str]], manifests: Mapping[str, SectionManifest]) -> list[Thumbnail]:
    """A thumbnail per row of ``sections.tsv``, in its order; sections without pixels get an empty one."""
    return [thumbnail(row, manifests.get(row["section"])) for row in rows]


def thumbnail(row: Mapping[str, str], manifest: SectionManifest | None) -> Thumbnail:
    """The thumbnail of one section."""
    flags = tuple(listed(row["flags"]))
    picture = None if manifest is None or manifest.status == "unreadable" else outlined(manifest)
    if picture is None:
        return Thumbnail(row["section"], row["block"], flags, row["notes"], "", THUMB_PX, THUMB_PX)
    height, width = picture.shape[:2]
    return Thumbnail(row["section"], row["block"], flags, row["notes"], data_address(picture, 60), width, height)


def outlined(manifest: SectionManifest) -> NDArray[np.uint8] | None:
    """A section at ``THUMB_PX`` along its long side, RGB (y, x, 3), with the outline of its mask; None if it cannot be read."""
    level = max(k for k in range(manifest.levels) if k == 0 or max(manifest.level_grid(k).shape) >= DRAWN_PX)
    try:
        image = open_level(manifest, level)
        mask = mask_on(manifest, image.grid)
        pixels = np.asarray(image.data[...])
    except (InputError, OSError, ValueError):
        return None
    rgb = resized(as_rgb(pixels, manifest.inverted), DRAWN_PX)
    size = (rgb.shape[1], rgb.shape[0])
    outline(rgb, cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127, OUTLINE, 2)
    return resized(rgb, THUMB_PX)


def as_rgb(pixels: NDArray[Any], is_dark: bool) -> NDArray[np.uint8]:
    """Pixels (y, x[, c]) as people see them: colours as they are, channels on a dark ground stretched to their range."""
    planes = pixels.reshape(*pixels.shape[:2], -1)[..., :3]
    if planes.dtype == np.uint8 and not is_dark:
        return np.ascontiguousarray(np.repeat(planes[..., :1], 3, axis=-1) if planes.shape[-1] < 3 else planes)
    low, high = (np.percentile(planes, q, axis=(0, 1)) for q in (1, 99.5))
    shown = np.clip((planes.astype(np.float32) - low) / np.maximum(high - low, 1e-6), 0, 1) * 255
    missing = 3 - shown.shape[-1]
    filled = np.concatenate([shown, np.repeat(shown[..., :1], missing, axis=-1)], axis=-1) if missing else shown
    return np.ascontiguousarray(filled.astype(np.uint8))


def resized(rgb: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """The picture at ``longest`` pixels along its long side."""
    scale = longest / max(rgb.shape[:2])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    return np.ascontiguousarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR), np.uint8)
