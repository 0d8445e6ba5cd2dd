"""What is published must mean to ITK, and to graph.json, what was registered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from histomri.core import Block, Grid, InputError, Section
from histomri.io.graph import read_graph
from histomri.io.placements import write_placements
from histomri.io.sections import SectionManifest, write_manifest
from histomri.stages.transforms import plane_reach_mm, publish_transforms
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements


def _placement(name: str, position: float, seed: int) -> Placement:
    random = np.random.default_rng(seed)
    field = DisplacementField(Grid((9, 9), 1.0, [-1.0, -1.0]), (random.normal(size=(9, 9, 2)) * 0.05).astype(np.float32))
    affine = Affine.from_parts(np.array([[0.1, 1.0], [0.9, 0.2]]) + random.normal(size=(2, 2)) * 0.02, [0.3, -0.2])
    return Placement(name, position, affine, field if seed % 2 else None)


@pytest.fixture
def study(tmp_path: Path):
    """Output folder, sections, manifests, blocks, placements of two blocks; the second has no MRI."""
    sections = [Section(n, Path("x.svs"), p, "b") for n, p in [("a", 0.0), ("b", 0.5), ("lost", 1.0), ("gone", 1.5)]]
    sections[3] = Section("gone", None, 1.5, "b", status="missing")
    sections.append(Section("c", Path("y.svs"), 2.0, "other", region=(10, 20, 500, 400)))
    manifests = {}
    for s in sections:
        if s.is_used:
            region = (10, 20, 500, 400) if s.id == "c" else None
            manifests[s.id] = tmp_path / "ingest" / s.id / "manifest.json"
            store = tmp_path / "sections" / f"{s.id}.ome.zarr"
            write_manifest(
                manifests[s.id],
                SectionManifest(s.id, store, (400, 500), (0.01, 0.01), 1, ("grey",), "uint8", (255.0,), region=region),
            )
    pose = Affine.from_parts(np.eye(3)[[1, 0, 2]] * 0.9, [1.0, 2.0, 3.0])
    lost = Placement("lost", 1.0, None, flags=("matches nothing",))
    first = Placements("b", {"a": _placement("a", 0.0, 1), "b": _placement("b", 0.5, 2), "lost": lost}, pose)
    second = Placements("other", {"c": _placement("c", 2.0, 3)})
    files = {}
    for placements in (first, second):
        files[placements.block] = tmp_path / "mri" / placements.block / "placements.json"
        write_placements(files[placements.block], placements)
    blocks = (Block("b", Path("m.nii")), Block("other"))
    publish_transforms(sections, manifests, blocks, files, tmp_path / "transforms")
    return tmp_path, sections, manifests, blocks, files, first


def test_the_files_chain_in_itk_as_the_graph_maps(study) -> None:
    folder, *_ = study
    graph = read_graph(folder / "transforms" / "graph.json")
    to_block = sitk.ReadTransform(str(folder / "transforms" / "b" / "a_to_block.h5"))
    to_mri = sitk.ReadTransform(str(folder / "transforms" / "b" / "block_to_mri.tfm"))
    points = np.random.default_rng(0).uniform(0, 3.9, (30, 2))
    mapped, reasons = graph.map(points, "section:a", "mri")
    assert not any(reasons)
    by_itk = [to_mri.TransformPoint([*to_block.TransformPoint(p[::-1].tolist()), 0.0])[::-1] for p in points]
    np.testing.assert_allclose(by_itk, mapped, atol=2e-3)


def test_the_graph_maps_as_the_placements_do(study) -> None:
    folder, *_, placements = study
    graph = read_graph(folder / "transforms" / "graph.json")
    plane = np.random.default_rng(0).uniform(0.5, 3, (30, 2))
    block = np.insert(plane, 0, 0.0, axis=1)
    for name in "ab":
        block[:, 0] = placements.sections[name].position_mm
        mri = placements.mri_to_block.inverse().map(block)
        mapped, reasons = graph.map(mri, "mri", f"section:{name}")
        expected = placements.sections[name].block_to_section.map(plane)
        inside = [not r for r in reasons]
        assert sum(inside) > 10
        np.testing.assert_allclose(mapped[inside], expected[inside], atol=1e-6)


def test_bent_planes_lead_to_the_mri_and_back_as_in_itk(study) -> None:
    folder, sections, manifests, blocks, files, placements = study
    grid = Grid((5, 4, 4), [0.4, 1.5, 1.5], [-0.5, -1.0, -1.0])
    values = np.zeros((5, 4, 4, 3))
    z, y, x = np.moveaxis(grid.points(), -1, 0)
    values[..., 0] = 0.15 * np.sin(z) * np.cos(0.5 * y) + 0.1 * x
    bent = dataclasses.replace(placements, plane_bend=DisplacementField(grid, values, "block:b", "block:b"))
    write_placements(files["b"], bent)
    publish_transforms(sections, manifests, blocks, files, folder / "transforms")
    assert not list((folder / "transforms" / "b").glob("*mri*.tfm"))
    graph = read_graph(folder / "transforms" / "graph.json")
    points = np.random.default_rng(0).uniform(0, 3.9, (30, 2))
    mapped, reasons = graph.map(points, "section:a", "mri")
    assert not any(reasons)
    again, reasons = graph.map(mapped, "mri", "section:a")
    assert not any(reasons)
    np.testing.assert_allclose(again, points, atol=1e-5)
    block = placements.mri_to_block.map(mapped)
    assert np.abs(block[:, 0] - 0.0).max() > 0.05
    np.testing.assert_allclose(bent.plane_bend.map(block)[:, 0], 0.0, atol=1e-6)
    to_mri = sitk.ReadTransform(str(folder / "transforms" / "b" / "block_to_mri.h5"))
    plane = np.insert(block[:, 1:], 0, 0.0, axis=1)
    by_itk = [to_mri.TransformPoint(p[::-1].tolist())[::-1] for p in plane]
    np.testing.assert_allclose(by_itk, mapped, atol=3e-3)


def test_lost_and_missing_sections_are_in_the_graph_with_their_reason(study) -> None:
    folder, *_ = study
    graph = read_graph(folder / "transforms" / "graph.json")
    assert graph.map([[1.0, 1.0]], "section:lost", "mri")[1][0] == "section lost was not placed: matches nothing"
    assert "missing in the sheet" in graph.map([[1.0, 1.0]], "section:gone", "mri")[1][0]


def test_a_block_without_mri_still_joins_its_slides(study) -> None:
    folder, *_ = study
    graph = read_graph(folder / "transforms" / "graph.json")
    points, reasons = graph.map([[0.2 + 1.0, 0.1 + 1.0]], "slide:c", "block:other")
    assert list(reasons) == [""]
    assert points[0, 0] == 2.0
    assert "no transform leads" in graph.map([[1.0, 1.0]], "section:c", "mri")[1][0]


def test_the_folder_may_move(study) -> None:
    folder, *_ = study
    (folder / "transforms").rename(folder / "elsewhere")
    assert not any(read_graph(folder / "elsewhere" / "graph.json").map([[1.0, 1.0]], "section:a", "mri")[1])
    text = (folder / "elsewhere" / "graph.json").read_text()
    assert str(folder) not in text
    assert json.loads(text)["spaces"]["section:a"]["level_0"] == "../sections/a.ome.zarr"


def test_files_of_sections_that_are_no_longer_placed_vanish(study) -> None:
    folder, sections, manifests, blocks, files, placements = study
    assert (folder / "transforms" / "b" / "block_to_a.h5").exists()
    placements.sections["a"] = Placement("a", 0.0, None)
    write_placements(files["b"], placements)
    publish_transforms(sections, manifests, blocks, files, folder / "transforms")
    assert not list((folder / "transforms").rglob("*a.h5"))
    assert (folder / "transforms" / "b" / "block_to_b.h5").exists()


def test_a_study_that_did_not_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the study first"):
        read_graph(tmp_path / "graph.json")


def test_a_section_reaches_to_the_farther_neighbour() -> None:
    sections = [Section(str(i), None, p) for i, p in enumerate([0.0, 0.5, 1.5])]
    assert [plane_reach_mm(s, sections) for s in sections] == [0.5, 1.0, 1.0]
    assert plane_reach_mm(sections[0], sections[:1]) == 0.5
