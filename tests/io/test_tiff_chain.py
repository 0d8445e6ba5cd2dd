"""A slide copied in part may keep a whole level 0; its chain of directories gives it away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from histomri.io.tiff_chain import is_cut_off


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_cut_behind_level_0_is_seen(tmp_path: Path, bigtiff: bool, order: str) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=order) as writer:
        for n in (256, 128, 64):
            writer.write(np.zeros((n, n), np.uint8), tile=(64, 64))
    whole = path.read_bytes()
    assert not is_cut_off(path)
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[2].offset
    for keep in (last - 1, last + 1, last + 30):
        path.write_bytes(whole[:keep])
        assert is_cut_off(path), keep


def test_files_that_are_no_tiff_and_chains_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\x89PNG and so on, for a while")
    assert not is_cut_off(path)
    path.write_bytes(b"II*\0\x08\0\0\0\0\0\x08\0\0\0\0\0\0\0")  # no entries, and the next directory is itself
    assert not is_cut_off(path)
