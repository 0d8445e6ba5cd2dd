"""ITK must see the transforms that we see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from histomri.core import Grid, InputError
from histomri.io.transform_files import read_transform, write_affine, write_chain
from histomri.io.transform_text import COUNTS, check_text
from histomri.transforms import Affine, DisplacementField


def _bent(spacing: float = 0.5) -> DisplacementField:
    """A smooth field of about 0.3 mm, the same for every spacing."""
    grid = Grid((int(12 / spacing) + 1, int(15 / spacing) + 1), spacing, [-2.0, 1.0])
    y, x = np.moveaxis(grid.points(), -1, 0)
    return DisplacementField(grid, 0.3 * np.stack([np.sin(x / 2), np.cos(y / 3) * np.sin(x / 4)], -1), "block:b", "block:b")


def _mirrored_affine() -> Affine:
    return Affine.from_parts([[0.2, 0.9], [0.8, -0.1]], [3.0, -7.0], "block:b", "section:a")


def _points(grid: Grid, n: int = 200) -> np.ndarray:
    low, high = grid.corners().min(0), grid.corners().max(0)
    return np.random.default_rng(0).uniform(low, high, (n, grid.ndim))


def _by_itk(path: Path, points: np.ndarray) -> np.ndarray:
    itk = sitk.ReadTransform(str(path))
    return np.array([itk.TransformPoint(p[::-1].tolist())[::-1] for p in points])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_an_affine_means_the_same_to_itk_in_both_directions(tmp_path: Path, ndim: int, suffix: str) -> None:
    random = np.random.default_rng(ndim)
    affine = Affine.from_parts(random.normal(size=(ndim, ndim)), random.normal(size=ndim) * 10, "mri", "block:b")
    points = random.normal(size=(50, ndim)) * 20
    for transform in (affine, affine.inverse()):
        write_affine(tmp_path / f"a{suffix}", transform)
        np.testing.assert_allclose(_by_itk(tmp_path / f"a{suffix}", points), transform.map(points), atol=1e-4)
        back = read_transform(tmp_path / f"a{suffix}", transform.from_space, transform.to_space)
        np.testing.assert_allclose(back.map(points), transform.map(points), atol=1e-9)
        assert (back.from_space, back.to_space) == (transform.from_space, transform.to_space)


def test_block_to_section_means_the_same_to_itk(tmp_path: Path) -> None:
    field = _bent()
    transform, points = _mirrored_affine() @ field, _points(field.grid)
    write_chain(tmp_path / "t.h5", transform)
    np.testing.assert_allclose(_by_itk(tmp_path / "t.h5", points), transform.map(points), atol=1e-4)
    back = read_transform(tmp_path / "t.h5", "block:b", "section:a")
    np.testing.assert_allclose(back.map(points), transform.map(points), atol=1e-9)
    assert (back.from_space, back.to_space) == ("block:b", "section:a")


def test_section_to_block_is_sampled_finely_enough(tmp_path: Path) -> None:
    field = _bent()
    transform = _mirrored_affine() @ field
    points = transform.map(_points(field.grid))
    write_chain(tmp_path / "t.h5", transform.inverse(), points)
    error = np.abs(_by_itk(tmp_path / "t.h5", points) - transform.inverse().map(points))
    assert np.percentile(error, 95) < 1e-4
    assert error.max() < 2e-3  # at a kink of the inverse
    assert (tmp_path / "t.h5").stat().st_size < 2e6


def test_itk_keeps_the_edge_value_where_the_file_must_cover(tmp_path: Path) -> None:
    field = _bent()
    outside = field.grid.corners() + np.array([[-3, -3], [-3, 3], [3, -3], [3, 3]])
    transform = _mirrored_affine() @ field
    write_chain(tmp_path / "t.h5", transform, outside)
    np.testing.assert_allclose(_by_itk(tmp_path / "t.h5", outside), transform.map(outside), atol=1e-4)
    write_chain(tmp_path / "bare.h5", transform)
    assert np.abs(_by_itk(tmp_path / "bare.h5", outside) - transform.map(outside)).max() > 0.01


def test_an_affine_alone_is_a_composite_too(tmp_path: Path) -> None:
    affine = _mirrored_affine()
    write_chain(tmp_path / "t.h5", affine)
    points = np.random.default_rng(1).normal(size=(20, 2))
    np.testing.assert_allclose(_by_itk(tmp_path / "t.h5", points), affine.map(points), atol=1e-4)


def test_the_centre_of_a_foreign_rotation_counts(tmp_path: Path) -> None:
    itk = sitk.Euler3DTransform([1.0, 2.0, 3.0], 0.1, 0.2, 0.3, [4.0, 5.0, 6.0])
    sitk.WriteTransform(itk, str(tmp_path / "t.tfm"))
    point = np.array([0.5, -1.5, 2.5])
    np.testing.assert_allclose(
        read_transform(tmp_path / "t.tfm").map(point)[::-1], itk.TransformPoint(point[::-1].tolist()), atol=1e-9
    )


def test_a_file_that_is_no_transform_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "t.tfm").write_text("nonsense")
    with pytest.raises(InputError, match=r"t\.tfm"):
        read_transform(tmp_path / "t.tfm")
    itk = sitk.BSplineTransform(2, 3)
    itk.SetTransformDomainMeshSize([2, 2])
    sitk.WriteTransform(itk, str(tmp_path / "b.tfm"))
    with pytest.raises(InputError, match="neither linear"):
        read_transform(tmp_path / "b.tfm")


def test_each_class_of_transforms_has_the_parameters_that_itk_gives_it(tmp_path: Path) -> None:
    for kind, counts in COUNTS.items():
        for dimensions, count in counts.items():
            if not hasattr(sitk, kind):  # ANTs' and older names for the same
                continue
            make = getattr(sitk, kind)
            itk = make(dimensions) if len(counts) > 1 else make()
            assert len(itk.GetParameters()) == count, kind
            sitk.WriteTransform(itk, str(tmp_path / "t.tfm"))
            assert read_transform(tmp_path / "t.tfm").ndim == dimensions


VERSOR = "#Insight Transform File V1.0\n#Transform 0\nTransform: VersorRigid3DTransform_double_3_3\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{VERSOR}Parameters: 0.1 0.2\nFixedParameters: 0 0 0\n", "6 parameters were expected, found 2"),
        (f"{VERSOR}Parameters:\n", "6 parameters were expected, found 0"),
        (f"{VERSOR}Parameters: .. 0.2 0 1 2 3\n", r"a number was expected, found '\.\.'"),
        (f"{VERSOR}Parameters: nan 0.2 0 1 2 3\n", "a number was expected, found 'nan'"),
        ("Transform: CompositeTransform_double_3_3\nComponentTransformFile: /etc/passwd\n", "found 'ComponentTransformFile'"),
        ("Transform: ThinPlateSplineKernelTransform_double_3_3\nParameters: 1\n", "is no transform that is read here"),
    ],
)
def test_a_text_that_would_lead_itk_beyond_its_numbers_or_to_other_files_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    """ITK ends the process over the first of them."""
    (tmp_path / "t.tfm").write_text(text)
    with pytest.raises(ValueError, match=words):
        check_text(tmp_path / "t.tfm")
    with pytest.raises(InputError, match=words):
        read_transform(tmp_path / "t.tfm")
