"""The README's picture, from the digital block: ``python docs/images/make_demo_picture.py MRI VOLUMES PICTURE``.

``MRI`` is the demo's ``mri.nii.gz``, ``VOLUMES`` the folder ``volumes/block`` of its output.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Picture = NDArray[np.uint8]
SIZE, GAP, CAPTION, INK = 290, 8, 26, (235, 235, 235)
TILES = 6


def colours(path: Path) -> Picture:
    """A colour volume of NIfTI as (x, y, z, 3), black but for its largest piece of tissue."""
    data = np.asarray(nib.load(path).dataobj)
    rgb = np.stack([data[c] for c in "RGB"], axis=-1)
    labels, _ = ndimage.label((rgb.min(axis=-1) < 205) & (rgb.max(axis=-1) > 0))
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.where(largest[..., None], rgb, 0).astype(np.uint8)


def grey(path: Path) -> Picture:
    """The MRI as (x, y, z, 3), stretched to 8 bits."""
    data = np.asarray(nib.load(path).dataobj, np.float32)
    low, high = np.percentile(data, (50, 99.7))
    scaled = np.clip((data - low) / (high - low), 0, 1) * 255
    return np.repeat(scaled[..., None], 3, axis=-1).astype(np.uint8)


def panel(plane: Picture, centre: tuple[int, int], half: int, text: str) -> Picture:
    """A square around ``centre`` of a plane, enlarged, with its caption below."""
    padded = np.pad(plane, ((half, half), (half, half), (0, 0)))
    square = padded[centre[0] : centre[0] + 2 * half, centre[1] : centre[1] + 2 * half]
    large = cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    caption = np.zeros((CAPTION, SIZE, 3), np.uint8)
    cv2.putText(caption, text, (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.44, INK, 1, cv2.LINE_AA)
    return np.asarray(np.concatenate([large, caption]), np.uint8)


def checkerboard(a: Picture, b: Picture, centre: tuple[int, int], half: int) -> Picture:
    """``a`` and ``b`` in turn, on squares of a board laid over the shown part."""
    y, x = np.indices(a.shape[:2])
    side = 2 * half / TILES
    odd = (np.floor((y - centre[0] + half) / side) + np.floor((x - centre[1] + half) / side)) % 2 > 0
    return np.asarray(np.where(odd[..., None], a, b), np.uint8)


def main() -> None:
    """The command line."""
    mri_file, volumes, out = map(Path, sys.argv[1:4])
    mri, he, lfb = grey(mri_file), colours(volumes / "he_in_mri.nii.gz"), colours(volumes / "lfb_in_mri.nii.gz")
    tissue = np.argwhere((he.max(axis=-1) > 0) & (mri[..., 0] > 60))
    middle = np.round((tissue.min(axis=0) + tissue.max(axis=0)) / 2).astype(int)
    half = int(np.ceil(0.53 * np.ptp(tissue, axis=0).max()))
    rows = []
    for axis, view in ((0, "near the cutting plane"), (2, "across the cut")):
        planes = [np.take(v, middle[axis], axis) for v in (mri, he, lfb)]
        centre = tuple(int(c) for c in np.delete(middle, axis))
        board = checkerboard(planes[0], planes[1], centre, half)
        names = (f"MRI, {view}", "H&E, in MRI space", "LFB, in MRI space", "MRI and H&E in turn")
        panels = [panel(p, centre, half, t) for p, t in zip((*planes, board), names, strict=True)]
        space = np.zeros((SIZE + CAPTION, GAP, 3), np.uint8)
        rows.append(np.concatenate([np.concatenate([p, space], axis=1) for p in panels], axis=1)[:, :-GAP])
    cv2.imwrite(str(out), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
