"""NIfTI files whose geometry is easy to get wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from histomri.core import Grid, Image, InputError
from histomri.io.nifti import read_geometry, read_nifti, write_nifti

ORIENTATIONS = ["".join(o) for o in itertools.chain(*(itertools.product(*p) for p in itertools.permutations(["RL", "AP", "SI"])))]
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([0.3, 0.4, 0.5]), [7.5, -3.25, 11.0])


def _save(path: Path, data: np.ndarray, affine: np.ndarray | None, sform: int = 1, qform: int = 1) -> Path:
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def _volume() -> np.ndarray:
    return np.random.default_rng(3).random((4, 5, 6), np.float32)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_axis_order_and_flip_lands_where_nibabel_says(tmp_path: Path, codes: str) -> None:
    base = nib.Nifti1Image(_volume(), OBLIQUE)
    turned = base.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(OBLIQUE), nib.orientations.axcodes2ornt(codes))
    )
    image = read_nifti(_save(tmp_path / "a.nii", np.asarray(turned.dataobj), turned.affine))
    index = np.array([1, 2, 3])
    expected = nib.affines.apply_affine(turned.affine, index) * [-1, -1, 1]
    np.testing.assert_allclose(image.grid.to_world(index[::-1])[::-1], expected, atol=1e-5)
    assert image.data[3, 2, 1] == turned.dataobj[1, 2, 3]


def test_an_oblique_volume_agrees_with_itk(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii.gz", _volume(), OBLIQUE)
    image, itk = read_nifti(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(image.data, sitk.GetArrayFromImage(itk))
    np.testing.assert_allclose(image.grid.to_world([5, 1, 2])[::-1], itk.TransformIndexToPhysicalPoint([2, 1, 5]), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_the_stored_type_and_every_bit_survive(tmp_path: Path, dtype: type) -> None:
    grid = Grid((3, 4, 5), [0.5, 0.4, 0.3], [1.5, -2.5, 3.25], np.diag([1.0, -1.0, -1.0]))
    data = (np.random.default_rng(1).random(grid.shape) * 100).astype(dtype)
    write_nifti(tmp_path / "a.nii.gz", Image(grid, data))
    back = read_nifti(tmp_path / "a.nii.gz")
    assert back.data.dtype == dtype
    np.testing.assert_array_equal(back.data, data)
    np.testing.assert_allclose(back.grid.index_to_world, grid.index_to_world, atol=1e-6)


def test_colours_open_in_itk_and_nibabel_and_come_back(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8)
    write_nifti(tmp_path / "c.nii.gz", Image(Grid((3, 4, 5), 0.5), data, ("red", "green", "blue")))
    np.testing.assert_array_equal(read_nifti(tmp_path / "c.nii.gz").data, data)
    itk = sitk.ReadImage(str(tmp_path / "c.nii.gz"))
    assert itk.GetNumberOfComponentsPerPixel() == 3
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk), data)
    assert nib.load(tmp_path / "c.nii.gz").dataobj[4, 3, 2]["G"] == data[2, 3, 4, 1]


def test_sixteen_bit_channels_become_a_vector_volume(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 60000, (3, 4, 5, 2), dtype=np.uint16)
    write_nifti(tmp_path / "c.nii", Image(Grid((3, 4, 5), 0.5), data, ("dapi", "fitc")))
    np.testing.assert_array_equal(read_nifti(tmp_path / "c.nii").data, data)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "c.nii"))), data)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    image = Image(Grid((3, 4, 5), 0.5), np.ones((3, 4, 5), bool))
    write_nifti(tmp_path / "a.nii.gz", image)
    write_nifti(tmp_path / "b.nii.gz", image)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.nii.gz", "b.nii.gz"}


def test_sform_wins_over_a_qform_that_disagrees(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_volume(), OBLIQUE)
    image.set_sform(OBLIQUE, 1)
    image.set_qform(np.diag([1, 1, 1, 1.0]), 1)
    nib.save(image, tmp_path / "a.nii")
    grid, notes = read_geometry(tmp_path / "a.nii")
    np.testing.assert_allclose(grid.spacing_mm, [0.5, 0.4, 0.3], atol=1e-6)
    assert any("sform is used" in n for n in notes)


@pytest.mark.parametrize("sform", [0, 1])
def test_qform_holds_without_a_valid_sform(tmp_path: Path, sform: int) -> None:
    image = nib.Nifti1Image(_volume(), None)
    image.set_qform(OBLIQUE, 1)
    image.header["sform_code"] = sform
    image.header["srow_x"] = image.header["srow_y"] = image.header["srow_z"] = 0
    image.header.set_xyzt_units("mm")
    _write_raw(tmp_path / "a.nii", image)
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").grid.spacing_mm, [0.5, 0.4, 0.3], atol=1e-6)


def _write_raw(path: Path, image: nib.Nifti1Image) -> None:
    """Without nibabel's repairs of the header."""
    header = image.header.copy()
    header["vox_offset"] = 352
    path.write_bytes(header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes("F"))


def test_microns_become_millimetres(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_volume(), np.diag([300.0, 300, 300, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").grid.spacing_mm, 0.3)


def test_a_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    assert read_nifti(_save(tmp_path / "a.nii", _volume()[..., None], OBLIQUE)).data.shape == (6, 5, 4)


def test_a_scaled_volume_is_read_in_its_values(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_volume(), OBLIQUE)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    back = read_nifti(tmp_path / "a.nii")
    assert back.data.dtype == np.float32
    np.testing.assert_allclose(back.data, _volume().T, atol=1e-4)


def _singular(path: Path) -> None:
    image = nib.Nifti1Image(_volume(), None)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = (1, 1, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0)
    _write_raw(path, image)


def _nowhere(path: Path) -> None:
    _save(path, _volume(), np.eye(4), sform=0, qform=0)


def _four(path: Path) -> None:
    _save(path, np.ones((4, 4, 4, 2), np.float32), OBLIQUE)


def _zeros(path: Path) -> None:
    _save(path, np.zeros((4, 4, 4), np.float32), OBLIQUE)


def _truncated(path: Path) -> None:
    _save(path, _volume(), OBLIQUE)
    path.write_bytes(path.read_bytes()[:500])


def _text(path: Path) -> None:
    path.write_text("not a volume")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_singular, "singular"),
        (_nowhere, "neither sform nor qform"),
        (_four, "4D"),
        (_zeros, "empty"),
        (_truncated, "cannot be read"),
        (_text, "not a readable"),
        (lambda path: None, "no such file"),
    ],
)
def test_a_volume_that_cannot_be_used_says_why_and_what_to_do(tmp_path: Path, make, says: str) -> None:
    make(tmp_path / "bad.nii")
    with pytest.raises(InputError, match=says) as caught:
        read_nifti(tmp_path / "bad.nii")
    assert "bad.nii" in str(caught.value)
    assert caught.value.problems[0].remedy


def test_an_empty_label_volume_is_allowed_where_asked(tmp_path: Path) -> None:
    _zeros(tmp_path / "a.nii")
    assert not read_nifti(tmp_path / "a.nii", may_be_empty=True).data.any()
