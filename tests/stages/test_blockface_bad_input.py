"""A photograph that cannot be read, or that claims gigapixels, costs its own plane and no other."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from histomri.core import Block, InputError, Section
from histomri.io.omezarr import open_array
from histomri.stages.blockface import BlockfaceSettings, build_volume

SHAPE = (120, 160)
RNG = np.random.default_rng(5)


def photographs(folder: Path) -> list[Section]:
    """Five of a block with marks at its frame and tissue that shrinks from one to the next."""
    y, x = np.indices(SHAPE)
    frame = np.full((*SHAPE, 3), 200.0) + RNG.normal(0, 12, (*SHAPE, 1))
    frame[:12] = frame[-12:] = (60, 60, 70)
    found = []
    for i in range(5):
        picture = frame.copy()
        picture[(y - 60) ** 2 + (x - 80) ** 2 < (34 - i) ** 2] = (150, 90, 70)
        path = folder / f"p{i}.png"
        cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8)[..., ::-1])
        found.append(Section(f"s{i}", None, i * 0.5, "b", blockface=path))
    return found


def claim(path: Path, side: int) -> None:
    """Let a PNG claim a square of that side."""
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def test_photographs_that_cannot_be_read_are_listed_and_the_others_make_the_volume(tmp_path: Path) -> None:
    sections = photographs(tmp_path)
    claim(tmp_path / "p1.png", 100_000)
    (tmp_path / "p3.png").write_bytes(b"no picture")
    block = Block("b", blockface_pixel_size_mm=0.05)
    build_volume(
        sections, block, tmp_path / "b.ome.zarr", tmp_path / "manifest.json", BlockfaceSettings(chunk_px=64, align_px=80)
    )
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert sorted(record["photographs"]) == ["s0", "s2", "s4"] and record["shape"] == [5, *SHAPE]
    reasons = {u["section"]: u["reason"] for u in record["unreadable"]}
    assert "100000 x 100000 pixels" in reasons["s1"] and "cannot be read as a photograph" in reasons["s3"]
    planes = np.asarray(open_array(tmp_path / "b.ome.zarr", "0")[...]).any(axis=(0, 2, 3))
    assert planes.tolist() == [True, False, True, False, True]


def test_photographs_above_the_limit_of_the_config_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections, block = photographs(tmp_path), Block("b", blockface_pixel_size_mm=0.05)
    monkeypatch.setattr(cv2, "imread", lambda *_: pytest.fail("decoded"))
    settings = BlockfaceSettings(max_photograph_px=SHAPE[0] * SHAPE[1] - 1)
    with pytest.raises(InputError, match="none of its photographs can be read"):
        build_volume(sections, block, tmp_path / "b.ome.zarr", tmp_path / "manifest.json", settings)
