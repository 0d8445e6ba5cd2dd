"""A checksum of decoded arrays changes with any value, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr

from histomri.io.checksums import checksum, checksums, decoded, difference
from histomri.io.transform_files import write_affine
from histomri.transforms import Affine

VALUES = np.random.default_rng(5).integers(0, 255, (3, 40, 50), np.uint8)


def store(folder: Path, chunk: int, level: int, values: np.ndarray = VALUES) -> Path:
    group = zarr.create_group(str(folder), zarr_format=3)
    codec = zarr.codecs.ZstdCodec(level=level)
    array = group.create_array("labels/0", shape=values.shape, dtype=values.dtype, chunks=(1, chunk, chunk), compressors=codec)
    array[...] = values
    return folder


def test_chunks_and_compression_do_not_count_but_a_value_does(tmp_path: Path):
    one, two = checksums(store(tmp_path / "a.zarr", 8, 1)), checksums(store(tmp_path / "b.zarr", 32, 9))
    assert one == two == {"labels/0": checksum(VALUES)}
    changed = VALUES.copy()
    changed[2, 39, 49] ^= 1
    assert checksums(store(tmp_path / "c.zarr", 8, 1, changed)) != one


def test_the_gzip_and_the_header_of_a_volume_do_not_count_but_its_place_does(tmp_path: Path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for name, description in (("a.nii", "one"), ("b.nii.gz", "two")):
        image = nibabel.Nifti1Image(VALUES, affine)
        image.header["descrip"] = description
        nibabel.save(image, tmp_path / name)
    a, b = checksums(tmp_path / "a.nii"), checksums(tmp_path / "b.nii.gz")
    assert a == b and a["voxels"]["shape"] == list(VALUES.shape[::-1])
    affine[0, 3] = 1e-3
    nibabel.save(nibabel.Nifti1Image(VALUES, affine), tmp_path / "c.nii")
    c = checksums(tmp_path / "c.nii")
    assert c["voxels"] == a["voxels"] and c["affine"] != a["affine"]


def test_a_transform_file_of_another_time_is_the_same_transform(tmp_path: Path):
    matrix = np.array([[1.0, 0.25, 3.0], [-0.25, 1.0, 5.0], [0.0, 0.0, 1.0]])
    for name in ("a.h5", "b.tfm"):
        write_affine(tmp_path / name, Affine(matrix))
    assert checksums(tmp_path / "a.h5") == checksums(tmp_path / "b.tfm")
    assert np.array_equal(dict(decoded(tmp_path / "a.h5"))["0.matrix"], matrix)


@pytest.mark.parametrize(("change", "what"), [({"a": [1, 2.5000001], "b": "x"}, "numbers"), ({"a": [1, 2.5], "b": "y"}, "words")])
def test_numbers_and_words_of_a_record_are_told_apart(tmp_path: Path, change: dict[str, object], what: str):
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, 2.5], "b": "x"}))
    (tmp_path / "b.json").write_text(json.dumps(change))
    a, b = checksums(tmp_path / "a.json"), checksums(tmp_path / "b.json")
    assert {name for name in a if a[name] != b[name]} == {what}


def test_a_difference_says_how_many_values_and_by_how_much():
    a = np.zeros((4, 5), np.float32)
    b = a.copy()
    b[1, 1], b[2, 3] = 0.5, -2
    assert difference(a, a.copy()) == ""
    assert difference(a, b) == "2 of 20 values differ, by 2 at most"
    assert difference(a, -a) == "20 of 20 values differ, by 0 at most", "the sign of zero is a bit too"
    assert difference(a, b[:3]) == "float32[4, 5] became float32[3, 5]"
