"""From slides to remarks on their order: two in each other's places, neighbours swapped, and one scanned twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

sys.path.insert(0, str(Path(__file__).parents[1] / "registration"))
from synthetic import Tissue, centred, moved, rigid

from histomri.core import Section
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.stages.order import check_order, edges_within, read_remarks, seriate_sections, with_positions
from histomri.stages.stack import StackSettings, measure_edges, plan_pairs, read_edges

N, PIXEL_MM, STEP_MM = 120, 0.1, 0.2
SETTINGS = StackSettings(search_px=24, fine_px=100, strays=4)
PLACES = list(range(-6, 7))
MEASURED: dict[tuple[str, str], dict[str, object]] = {}  # by the tests of this module, each pair once


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, Section]]:
    """The planes of a block, 0.2 mm apart, each turned as it likes on its slide, and one of them scanned again (place 99)."""
    folder = tmp_path_factory.mktemp("order")
    tissue, random = Tissue(3, 4), np.random.default_rng(0)
    sections = []
    for place in [*PLACES, 99]:
        section = Section(f"p{place + 100}", folder / f"{place}.png", float(place))
        grid = centred(N, PIXEL_MM)
        yx = moved(np.linalg.inv(rigid(random.uniform(0, 360))), grid.points())
        points = np.concatenate([np.full((*yx.shape[:-1], 1), STEP_MM * (4 if place == 99 else place)), yx], axis=-1)
        data = 240 - 70 * np.where(tissue.inside(points), 1.5 + 0.5 * tissue.texture(points), 0)
        noise = random.normal(size=data.shape) * 2
        Picture.fromarray(np.clip(data + noise, 0, 255).astype(np.uint8)).save(section.file)
        ingest_section(
            section,
            folder / f"{section.id}.ome.zarr",
            folder / "ingest" / section.id / "manifest.json",
            IngestSettings(),
            PIXEL_MM,
        )
        sections.append(section)
    return folder, {s.position_mm: s for s in sections}


def remarks(cut, places: Sequence[int], settings: StackSettings = SETTINGS) -> dict[str, tuple[str, ...]]:
    """What is said of a sheet that has the sections cut at these places in this order."""
    folder, _ = cut
    sheet, manifests = measured(cut, places, settings)
    check_order(sheet, manifests, [folder / "edges.json"], folder / "order.json", settings)
    return read_remarks(folder / "order.json")


def measured(cut, places: Sequence[int], settings: StackSettings) -> tuple[list[Section], dict[str, Path]]:
    """The sheet that has the sections cut at these places in this order, its pairs measured."""
    folder, known = cut
    sheet = [Section(known[p].id, known[p].file, float(i)) for i, p in enumerate(places)]
    manifests = {s.id: folder / "ingest" / s.id / "manifest.json" for s in sheet}
    (batch,) = plan_pairs(sheet, settings.reach, 100, settings.order)
    new = [pair for pair in batch if pair not in MEASURED]
    measure_edges(sheet, manifests, new, folder / "new.json", settings)
    MEASURED.update({(r["fixed"], r["moving"]): r for r in json.loads((folder / "new.json").read_text())["edges"]})
    (folder / "edges.json").write_text(json.dumps({"edges": [MEASURED[pair] for pair in batch]}))
    return sheet, manifests


def test_the_true_order_raises_no_remark(cut) -> None:
    assert remarks(cut, PLACES) == {}
    assert json.loads((cut[0] / "order.json").read_text())["pairs"] <= 4 * 12


def test_a_swapped_pair_and_a_section_scanned_twice_are_told(cut) -> None:
    places = list(PLACES)
    places[2], places[3] = places[3], places[2]
    places.insert(places.index(4) + 1, 99)
    found = remarks(cut, places)
    assert {"p96", "p97"} <= set(found) and "swapped" in found["p96"][0]
    assert {"p104", "p199"} <= set(found) and "in the sheet twice" in found["p199"][0]
    assert set(found) == {"p96", "p97", "p104", "p199"}


def test_wrong_order_in_the_sheet_two_sections_in_each_others_places_are_told(cut) -> None:
    places = list(PLACES)
    places[2], places[10] = places[10], places[2]
    found = remarks(cut, places)
    assert set(found) == {"p96", "p104"}
    assert any(f"section p{p}" in found["p96"][0] for p in (95, 97))
    assert any(f"section p{p}" in found["p104"][0] for p in (103, 105))


def test_too_few_sections_say_nothing(cut) -> None:
    assert remarks(cut, [3, 0, 5, 1]) == {}


def test_an_unknown_order_is_found_and_the_sheets_positions_follow_it(cut) -> None:
    settings = StackSettings(search_px=24, fine_px=100, reach=2, order="unknown")
    shuffled = [3, -1, 0, 5, -3, 2, 4, -2, 1]
    sheet, manifests = measured(cut, shuffled, settings)
    seriate_sections(sheet, manifests, [cut[0] / "edges.json"], cut[0] / "order.json", settings)
    found = with_positions(sheet, cut[0] / "order.json")
    assert [s.id for s in found] == [s.id for s in sheet]
    order = [int(s.id[1:]) - 100 for s in sorted(found, key=lambda s: s.position_mm)]
    assert order in (sorted(shuffled), sorted(shuffled)[::-1])
    assert sorted(s.position_mm for s in found) == [s.position_mm for s in sheet]
    near = edges_within(2, read_edges(cut[0] / "edges.json"), found)
    assert len(near) == 8 + 7
    assert {e.distance_mm for e in near} == {1.0, 2.0}
