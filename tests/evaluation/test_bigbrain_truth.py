"""The BigBrain benchmark on a graph made from the truth itself: what it must call perfect, and what it must not."""

from __future__ import annotations

import importlib.util
import sys

import cv2
import numpy as np
import pytest
from scipy import ndimage

from histomri.core import Block, Grid, Section
from histomri.io.omezarr import PyramidSpec, Storage, write_label, write_pyramid
from histomri.io.placements import write_placements
from histomri.io.pyramid import Reading
from histomri.io.sections import SectionManifest, write_manifest
from histomri.stages.transforms import publish_transforms
from histomri.transforms import Affine
from histomri.transforms.placement import Placement, Placements

MM = 0.4
NUMBERS = (60, 150, 250, 300)
SWAP_XY, SWAP_XYZ = np.eye(3)[[1, 0, 2]], np.eye(4)[[2, 1, 0, 3]]


@pytest.fixture(scope="module")
def bench(checkout):
    spec = importlib.util.spec_from_file_location("bigbrain_truth", checkout / "tests/benchmarks/bigbrain_truth.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bigbrain_truth"] = module
    spec.loader.exec_module(module)
    return module


def make_run(bench, data, output, shift_mm=(0.0, 0.0, 0.0), turned=False):
    """An output folder whose placements are the published alignments, moved by (z, y, x) in the block, on the true pose."""
    truth = bench.BigBrainTruth.read(data / "bigbrain" / "truth")
    sections, manifests, placements = [], {}, {}
    for number in NUMBERS:
        name = f"slice_{number:03d}"
        mask = cv2.imread(str(truth.folder / "section_masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) > 0
        # the masks of the truth have holes and specks of their own
        mask = ndimage.binary_fill_holes(ndimage.binary_opening(mask, iterations=2))
        grid = Grid(mask.shape, np.array([MM, MM]))
        store = output / "sections" / f"{name}.ome.zarr"
        write_pyramid(
            store,
            PyramidSpec(name, grid, ("grey",), "uint8", 1),
            Reading(lambda y, x, h, w: np.zeros((h, w, 1), np.uint8)),
            Storage(),
        )
        write_label(store, "tissue", [mask], [grid], Storage())
        manifests[name] = output / "ingest" / name / "manifest.json"
        manifests[name].parent.mkdir(parents=True)
        write_manifest(manifests[name], SectionManifest(name, store, mask.shape, (MM, MM), 1, ("grey",), "uint8", (255.0,)))
        pixels = SWAP_XY @ truth.published(number) @ SWAP_XY  # (y, x) of the plane to (y, x) of the section
        to_mm = np.diag([MM, MM, 1.0])
        affine = to_mm @ pixels @ np.linalg.inv(to_mm)
        if turned:
            affine = affine @ np.array([[1.0, 0, 0], [0, -1, 348 * MM], [0, 0, 1]])
        sections.append(Section(name, output, (number - 1) * MM))
        placements[name] = Placement(name, (number - 1) * MM, Affine(affine))
    flip = SWAP_XYZ @ np.diag([-1.0, -1, 1, 1])  # LPS (z, y, x) from RAS (x, y, z)
    pose = np.linalg.inv(flip @ truth.pose @ SWAP_XYZ)
    moved = Affine.from_parts(np.eye(3), shift_mm).matrix @ pose
    path = output / "mri" / "block" / "placements.json"
    write_placements(path, Placements("block", placements, Affine(moved)))
    publish_transforms(sections, manifests, (Block("block"),), {"block": path}, output / "transforms")
    return output


@pytest.fixture(scope="module")
def perfect(bench, shared_data, tmp_path_factory):
    return bench.evaluate_run(make_run(bench, shared_data, tmp_path_factory.mktemp("run")), shared_data)


def test_the_truth_itself_is_perfect(perfect):
    found = perfect
    assert found["plane_distance_mm"]["median"] < 1e-3 and found["plane_distance_mm"]["p95"] < 1e-3
    assert found["tilt_deg"] < 1e-2
    assert found["published_distance_mm"]["median"] < 1e-3
    assert found["placed"] == len(NUMBERS) and found["targets_met"]["placed"]


def test_masks_by_our_chain_agree_with_masks_by_the_published_matrices(perfect):
    found = perfect
    assert found["mask_dice"]["median"] == pytest.approx(found["mask_dice_of_published"]["median"], abs=0.004)
    assert found["mask_dice"]["median"] > 0.88


def test_a_shift_along_the_axis_is_plane_distance_and_one_in_the_plane_is_not(bench, shared_data, tmp_path):
    along = bench.evaluate_run(make_run(bench, shared_data, tmp_path / "z", (2.0, 0, 0)), shared_data)
    assert (
        along["plane_distance_mm"]["median"] == pytest.approx(2.0, abs=1e-3) and along["published_distance_mm"]["median"] < 1e-3
    )
    assert not along["targets_met"]["plane_distance_mm.median"]
    within = bench.evaluate_run(make_run(bench, shared_data, tmp_path / "y", (0, 5.0, 0)), shared_data)
    assert within["plane_distance_mm"]["median"] < 1e-3
    assert within["published_distance_mm"]["median"] == pytest.approx(5.0, abs=1e-3)


def test_a_mirrored_result_does_not_pass(bench, shared_data, tmp_path):
    found = bench.evaluate_run(make_run(bench, shared_data, tmp_path, turned=True), shared_data)
    assert found["published_distance_mm"]["median"] > 10 and not found["targets_met"]["published_distance_mm.median"]
