"""Evaluate on a small study whose truth is known: sections cut from a synthetic MRI, some of them spoilt."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from scipy import ndimage

import histomri
from histomri.core import Block, Grid, Image, Section
from histomri.io.config import default_config
from histomri.io.nifti import write_nifti
from histomri.io.omezarr import PyramidSpec, Storage, write_label, write_pyramid
from histomri.io.placements import write_placements
from histomri.io.pyramid import Reading
from histomri.io.sections import SectionManifest, write_manifest
from histomri.stages.evaluate import EvaluateSettings, evaluate, write_provenance, write_report
from histomri.stages.transforms import publish_transforms
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements

MRI_KEYS = ("rotations", "candidates", "work_px", "neighbours", "affine_sweeps", "deformable_sweeps", "mri_weight")
SPACING = 0.2
SHAPE = (120, 110)
N = 13
TORN, PALE, BLOTCHED, MOVED, LOST, MISSING, FOLDED, MIRRORED = "s03", "s05", "s07", "s09", "s10", "s11", "s01", "s06"
LOCKED = "s08"
CONFIDENCE = {TORN: 0.8, MOVED: 0.4}
SETTINGS = EvaluateSettings(max_pixels=128)


def specimen(z: float, points: np.ndarray) -> np.ndarray:
    """Staining, 0 outside the tissue, of block points (..., 2) mm at ``z``: a blob with bands that drift slowly along z."""
    y, x = points[..., 0] - 12 - 0.1 * z, points[..., 1] - 11
    inside = (y / 9) ** 2 + (x / 8) ** 2 + 0.08 * np.sin(3 * np.arctan2(y, x)) < 0.9 - 0.01 * z
    return np.where(inside, 0.5 + 0.12 * np.sin(1.3 * y + 0.2 * z) + 0.12 * np.cos(1.1 * x - y), 0.0)


def block_to_section(i: int, mirrored: bool) -> Affine:
    """A rotation of its own about the middle of the block, and a mirror where asked."""
    a = np.deg2rad(7.0 * i)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ np.diag([1.0, -1.0 if mirrored else 1.0]) * 0.9
    return Affine.from_parts(turn, np.array([12.0, 11.0]) - turn @ [12.0, 11.0])


def paint(i: int, to_section: Affine) -> np.ndarray:
    """The section's pixels, uint8 (y, x, 3)."""
    name = f"s{i:02d}"
    block = to_section.inverse().map(Grid(SHAPE, np.array([SPACING] * 2)).points())
    density = specimen(0.5 * i, block)
    if name == TORN:
        density = np.where(
            np.abs(block[..., 1] - 11 - 0.1 * (block[..., 0] - 3)) < 0.6, np.where(block[..., 0] < 14, 0, density), density
        )
    if name == PALE:
        density = density * 0.35
    if name == BLOTCHED:
        density = density + 0.7 * (density > 0) * (np.hypot(block[..., 0] - 12, block[..., 1] - 11) < 3)
    noise = np.random.default_rng(i).normal(0, 1, density.shape)
    return np.clip(240 * 10**-density + noise, 0, 255).astype(np.uint8)[..., None].repeat(3, -1)


def ingest(folder: Path, i: int, to_section: Affine) -> Path:
    """Write the store and the manifest of one section; returns the manifest."""
    name, pixels = f"s{i:02d}", paint(i, to_section)
    grid = Grid(SHAPE, np.array([SPACING] * 2))
    mask = ndimage.binary_opening(pixels[..., 0] < 225)
    store = folder / "sections" / f"{name}.ome.zarr"
    storage = Storage(64, 128)
    write_pyramid(
        store,
        PyramidSpec(name, grid, ("red", "green", "blue"), "uint8", 1),
        Reading(lambda y, x, h, w: pixels[y : y + h, x : x + w]),
        storage,
    )
    write_label(store, "tissue", [mask], [grid], storage)
    path = folder / "ingest" / name / "manifest.json"
    path.parent.mkdir(parents=True)
    record = SectionManifest(
        name,
        store,
        SHAPE,
        (SPACING, SPACING),
        1,
        ("red", "green", "blue"),
        "uint8",
        (240.0,) * 3,
        tissue_area_mm2=float(mask.sum() * SPACING**2),
    )
    write_manifest(path, dataclasses.replace(record, content_sha256=f"hash of {name}"))
    return path


def placement(i: int, to_section: Affine, final: bool) -> Placement:
    """The true placement, spoilt for the sections that are to be found; before refinement all are 0.8 mm off."""
    name, z = f"s{i:02d}", 0.5 * i
    if name == LOST:
        return Placement(name, z, None, flags=("no neighbour agrees; not even one",), confidence=0.0)
    shift = [0.0, 0.0] if final else [0.8, -0.5]
    shift = [2.2, 1.5] if name == MOVED and final else shift
    found = Affine(to_section.matrix @ Affine.from_parts(np.eye(2), shift).matrix)
    field = None
    if name == FOLDED and final:
        grid = Grid((24, 22), np.array([1.0, 1.0]))
        y = grid.points()[..., 0]
        field = DisplacementField(grid, np.stack([-4.0 * np.exp(-((y - 12) ** 2)) * (y - 12), 0 * y], axis=-1))
    flags = ("placed by hand, by a lock",) if name == LOCKED and final else ()
    return Placement(name, z, found, field, flags, confidence=CONFIDENCE.get(name, 0.9))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The evaluated study: everything that ``evaluate`` was given, and its folder."""
    folder = tmp_path_factory.mktemp("study")
    pose = Affine.from_parts(np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]), [1.0, 2.0, 3.0])  # swaps axes
    sections, manifests, final, initial = [], {}, {}, {}
    for i in range(N):
        name = f"s{i:02d}"
        status = "missing" if name == MISSING else "ok"
        sections.append(Section(name, None if status == "missing" else Path(f"{name}.tif"), 0.5 * i, block="b", status=status))
        if status == "missing":
            continue
        to_section = block_to_section(i, name == MIRRORED)
        manifests[name] = ingest(folder, i, to_section)
        final[name], initial[name] = placement(i, to_section, True), placement(i, to_section, False)
    write_placements(folder / "mri/b/placements.json", Placements("b", final, pose))
    write_placements(folder / "stack/b/placements.json", Placements("b", initial, None))
    (folder / "mri/b/pose.json").write_text(
        json.dumps(
            {"mri_to_block": pose.matrix.tolist(), "confidence": 0.93, "sections_as": "neighbours", "metrics": {"nmi": 1.2}}
        )
    )
    mri = Grid((60, 60, 18), np.array([0.4, 0.4, 0.5]), np.array([-3.0, -2.0, -1.0]))
    block_points = pose.map(mri.points())
    write_nifti(
        folder / "mri.nii.gz", Image(mri, (1000 * specimen(block_points[..., 0], block_points[..., 1:])).astype(np.float32))
    )
    blocks = (Block("b", folder / "mri.nii.gz"),)
    publish_transforms(sections, manifests, blocks, {"b": folder / "mri/b/placements.json"}, folder / "transforms")
    landmarks(folder / "landmarks.tsv", pose)
    given = {
        "study": "synthetic",
        "sections": tuple(sections),
        "manifests": manifests,
        "blocks": blocks,
        "placements": {"b": folder / "mri/b/placements.json"},
        "initial": {"b": folder / "stack/b/placements.json"},
        "poses": {"b": folder / "mri/b/pose.json"},
        "graph": folder / "transforms/graph.json",
        "landmarks": folder / "landmarks.tsv",
        "settings": SETTINGS,
        "folder": folder / "evaluation",
    }
    evaluate(**given)
    return given


def landmarks(path: Path, pose: Affine) -> None:
    """True landmarks on two good sections, on the one that was moved, on the one not placed, and one off its image."""
    rows = ["name\tsection\tx\ty\tmri_x\tmri_y\tmri_z"]
    for name in ("s02", "s08", MOVED, LOST):
        i = int(name[1:])
        for k, p in enumerate([(9.0, 9.0), (14.0, 12.0), (12.0, 8.0)]):
            y, x = block_to_section(i, False).map(p) / SPACING
            z_lps, y_lps, x_lps = pose.inverse().map([0.5 * i, *p])
            rows.append(f"{name}-{k}\t{name}\t{x}\t{y}\t{-x_lps}\t{-y_lps}\t{z_lps}")
    path.write_text("\n".join([*rows, "off\ts02\t-500\t3\t0\t0\t0"]) + "\n")


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def metrics(study):
    return json.loads((study["folder"] / "metrics.json").read_text())


@pytest.fixture(scope="module")
def rows(study):
    return {r["section"]: r for r in read(study["folder"] / "sections.tsv")}


def test_landmark_errors_are_the_displacements_that_were_put_in(study, metrics):
    errors = {r["name"]: r for r in read(study["folder"] / "landmarks.tsv")}
    assert float(errors["s02-0"]["error_mm"]) < 1e-3 and float(errors["s08-2"]["error_mm"]) < 1e-3
    for k in range(3):
        assert float(errors[f"{MOVED}-{k}"]["error_mm"]) == pytest.approx(np.hypot(2.2, 1.5), abs=1e-3)
    assert metrics["tre_mm"]["n"] == 9 and metrics["tre_mm"]["median"] < 1e-3
    assert metrics["tre_mm"]["max"] == pytest.approx(np.hypot(2.2, 1.5), abs=1e-3)
    assert metrics["tre_mm_unflagged"]["max"] < 1e-3


def test_unmappable_landmarks_are_counted_apart_and_say_why(study, metrics):
    errors = {r["name"]: r for r in read(study["folder"] / "landmarks.tsv")}
    assert metrics["unmapped_landmarks"] == 4
    assert {r["section"]: r["flagged"] for r in errors.values()} == {"s02": "no", LOCKED: "no", MOVED: "yes", LOST: "yes"}
    assert "not placed" in errors[f"{LOST}-0"]["reason"] and "outside" in errors["off"]["reason"]
    assert errors["off"]["error_mm"] == ""


@pytest.mark.parametrize(
    ("section", "code"),
    [
        (TORN, "missing_tissue"),
        (PALE, "pale"),
        (BLOTCHED, "blotch"),
        (MOVED, "mri_overlap"),
        (LOST, "not_placed"),
        (LOST, "no neighbour agrees"),
        (MISSING, "missing"),
        (FOLDED, "folding"),
        (MOVED, "neighbour_overlap"),
    ],
)
def test_every_spoilt_section_is_flagged_for_what_is_wrong(rows, section, code):
    assert code in rows[section]["flags"]


def test_good_sections_raise_no_false_alarm(rows):
    spoilt = {TORN, PALE, BLOTCHED, MOVED, LOST, MISSING, FOLDED}
    assert {s: r["flags"] for s, r in rows.items() if s not in spoilt and r["flags"]} == {}


def test_mirrored_is_information_and_no_suspicion(rows, metrics):
    assert rows[MIRRORED]["mirrored"] == "yes" and rows[MIRRORED]["flags"] == ""
    assert metrics["sections"] == {"total": 13, "placed": 11, "flagged": 7, "lost": 2, "mirrored": 1}


def test_a_section_placed_by_hand_is_noted_and_no_suspicion(rows, study):
    assert rows[LOCKED]["flags"] == "" and rows[LOCKED]["notes"].split("; ")[0] == "placed by hand, by a lock"


def test_a_flag_stays_one_flag_in_the_table_whatever_it_holds(rows):
    assert rows[LOST]["flags"].split("; ")[0] == "remark: no neighbour agrees, not even one"


def test_overlap_and_nmi_see_that_refinement_helped(metrics, rows):
    assert metrics["mask_dice"]["median"] > 0.97 and metrics["mask_dice"]["p10"] < 0.97
    assert metrics["nmi"]["after"] > metrics["nmi"]["before"] + 0.05
    assert float(rows["s02"]["scale_x"]) == pytest.approx(0.9) and float(rows["s02"]["shear"]) == pytest.approx(0, abs=1e-9)
    assert metrics["pose"]["b"]["confidence"] == 0.93 and metrics["pose"]["b"]["warning"] is None


def test_folding_is_measured_only_where_it_is(metrics, rows):
    assert float(rows[FOLDED]["folding"]) > 0.02
    assert all(float(r["folding"]) == 0 for s, r in rows.items() if s != FOLDED and r["folding"])
    assert 0 < metrics["folding_fraction"] < float(rows[FOLDED]["folding"])


def test_without_mri_and_landmarks_the_stack_is_evaluated(study, tmp_path):
    given = study | {"blocks": (Block("b"),), "poses": {}, "landmarks": None, "folder": tmp_path, "placements": study["initial"]}
    evaluate(**given)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["tre_mm"] is None and found["mask_dice"] is None and found["nmi"] is None
    assert found["smoothness"]["b"]["neighbour_similarity"] > 0.8
    report = tmp_path / "index.html"
    write_report(*(given[k] for k in ("study", "sections", "manifests", "blocks", "placements")), {}, tmp_path, SETTINGS, report)
    assert "into one stack" in report.read_text()


def test_threads_change_nothing(study, tmp_path):
    evaluate(**study | {"folder": tmp_path}, threads=3)
    for name in ("metrics.json", "sections.tsv", "landmarks.tsv"):
        assert (tmp_path / name).read_bytes() == (study["folder"] / name).read_bytes()


def test_no_section_placed_at_all_still_gives_metrics(study, tmp_path):
    none = {f"s{i:02d}": Placement(f"s{i:02d}", 0.5 * i, None) for i in range(N)}
    write_placements(tmp_path / "placements.json", Placements("b", none, None))
    evaluate(**study | {"placements": {"b": tmp_path / "placements.json"}, "landmarks": None, "folder": tmp_path})
    assert json.loads((tmp_path / "metrics.json").read_text())["sections"] == {
        "total": 13,
        "placed": 0,
        "flagged": 13,
        "lost": 13,
        "mirrored": 0,
    }


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    grid = Grid((20, 24, 28), np.array([0.6, 0.5, 0.5]), np.array([-2.0, -1.0, 0.0]))
    data = np.random.default_rng(0).integers(1, 255, (*grid.shape, 3)).astype(np.uint8)
    write_nifti(folder / "histology_in_mri.nii.gz", Image(grid, data, ("red", "green", "blue")))
    (folder / "histology_in_mri.json").write_text("{}")
    report = folder / "report" / "index.html"
    volumes = {("b", "histology", "mri"): folder / "histology_in_mri.json"}
    args = (study[k] for k in ("study", "sections", "manifests", "blocks", "placements"))
    write_report(*args, volumes, study["folder"], SETTINGS, report)
    return report.read_text()


def test_report_loads_nothing_from_outside(page):
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#|sections\.html["'])""", page)
    assert "url(" not in page and "@import" not in page and "fetch(" not in page


def test_contact_sheets_show_every_section_in_order_and_mark_the_flagged(study, page, tmp_path):
    args = [study[k] for k in ("study", "sections", "manifests", "blocks", "placements")]
    write_report(*args, {}, study["folder"], SETTINGS, tmp_path / "index.html")
    sheets = (tmp_path / "sections.html").read_text()
    entries = re.findall(r'<li( class="flagged")? title="(s\d\d)', sheets)
    assert [name for _, name in entries] == [f"s{i:02d}" for i in range(N)]
    assert {name for mark, name in entries if mark} == {TORN, PALE, BLOTCHED, MOVED, LOST, MISSING, FOLDED}
    assert sheets.count("data:image/jpeg") == N - 1 and sheets.count("no picture") == 1  # the missing one
    assert len(sheets) < N * 8e3 and not re.search(r"""src\s*=\s*["'](?!data:)""", sheets)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(re.findall(r"base64,([^\"]+)", sheets)[1]), np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) == 112
    blue, green, red = np.moveaxis(picture.astype(int), -1, 0)
    assert ((green - red > 60) & (green - blue > 40)).sum() > 100  # the outline


def test_report_shows_flagged_sections_first_with_reasons(page):
    assert page.index('id="flagged"') < page.index(f'id="s-{TORN}"') < page.index('id="volumes"') < page.index('id="s-s02"')
    assert "torn, cracked or lost" in page and page.count("data:image/jpeg") == 2 * 11 + 6


def test_flagged_sections_stand_in_order_of_confidence_worst_first(page):
    flagged = page[page.index('id="flagged"') : page.index('id="volumes"')]
    shown = re.findall(r'id="s-(s\d\d)"', flagged)
    assert shown[:3] == [LOST, MOVED, TORN] and shown[-1] == MISSING
    assert set(shown) == {TORN, PALE, BLOTCHED, MOVED, LOST, MISSING, FOLDED}


def test_what_was_placed_by_hand_is_said_in_the_report(page):
    own = page[page.index(f'id="s-{LOCKED}"') :].split("</article>")[0]
    assert '<p class="note">placed by hand, by a lock</p>' in own and "reasons" not in own


def test_a_pose_in_doubt_is_the_first_thing_that_the_report_says(study, page, tmp_path):
    assert 'class="warning"' not in page
    pose = json.loads(study["poses"]["b"].read_text()) | {"confidence": 0.62}
    (tmp_path / "pose.json").write_text(json.dumps(pose))
    evaluate(**study | {"poses": {"b": tmp_path / "pose.json"}, "landmarks": None, "folder": tmp_path})
    args = [study[k] for k in ("study", "sections", "manifests", "blocks", "placements")]
    write_report(*args, {}, tmp_path, SETTINGS, tmp_path / "index.html")
    told = (tmp_path / "index.html").read_text()
    text = told[told.index('class="warning"') :].split("</p>")[0]
    assert "the pose in the MRI is in doubt (confidence 0.62" in text
    assert told.index('class="warning"') < told.index('class="cards"') < told.index('id="flagged"')
    assert told.count('href="#sections"') == 1 and 'id="sections"' in told


def test_report_keeps_to_its_size(study, tmp_path):
    args = [study[k] for k in ("study", "sections", "manifests", "blocks", "placements")]
    small = dataclasses.replace(SETTINGS, report_max_mb=0.12)
    write_report(*args, {}, study["folder"], small, tmp_path / "index.html")
    assert (tmp_path / "index.html").stat().st_size < 0.12e6 + 30e3


def test_provenance_is_the_same_but_for_the_time(study, tmp_path):
    inputs, outputs = [study["landmarks"], *study["manifests"].values()], [study["folder"] / "metrics.json"]
    records = []
    for order in (inputs, inputs[::-1]):
        given = {file.as_posix(): file for file in order}
        write_provenance("synthetic", {"study": "synthetic"}, given, outputs, tmp_path / "provenance.json", 2)
        records.append(json.loads((tmp_path / "provenance.json").read_text()))
    times = [r.pop("written_at") for r in records]
    assert records[0] == records[1] and all(times)
    assert list(records[0]["inputs"]) == sorted(records[0]["inputs"])
    landmark = records[0]["inputs"][study["landmarks"].as_posix()]
    assert landmark["sha256"] == hashlib.sha256(study["landmarks"].read_bytes()).hexdigest()
    assert records[0]["inputs"][study["manifests"]["s02"].as_posix()]["content_sha256"] == "hash of s02"
    assert records[0]["packages"]["numpy"] == np.__version__


def test_settings_and_schema_agree(checkout):
    schema = yaml.safe_load((checkout / "config/schema/evaluate.yaml").read_text())
    assert {k: v["default"] for k, v in schema["properties"].items()} == dataclasses.asdict(EvaluateSettings())
    assert schema["additionalProperties"] is False and all(v["description"] for v in schema["properties"].values())


def test_the_methods_paragraph_names_versions_parameters_and_what_to_cite(study, tmp_path):
    config = default_config()
    wanted = [("stack", k) for k in ("reach", "search_px", "fine_px", "alpha")]
    wanted += [("mri", k) for k in MRI_KEYS]
    parameters = {f"{stage}.{key}": config[stage][key] for stage, key in wanted} | {"mri.rotations": 1234}
    args = [study[k] for k in ("study", "sections", "manifests", "blocks", "placements")]
    write_report(*args, {}, study["folder"], SETTINGS, tmp_path / "index.html", parameters=parameters)
    page = (tmp_path / "index.html").read_text()
    text = page[page.index('id="paper"') :]
    assert "over 1234 rotations" in text and f"NumPy {np.__version__}" in text and f"histomri {histomri.__version__}" in text
    numbers = {int(n) for n in re.findall(r"\[(\d+)\]", text)}
    assert numbers == set(range(1, text.count("<li>") + 1))


class Scripts(HTMLParser):
    """What a browser would run, and the text that it would show."""

    def __init__(self, page: str):
        super().__init__()
        self.run, self.shown, self._inside = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.run += [f"{tag} {name}" for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.run.append(data)
        else:
            self.shown += data


def test_names_and_flags_that_are_html_are_shown_and_not_run(study, tmp_path):
    bad = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"
    shutil.copytree(study["folder"], tmp_path / "evaluation")
    sheet = tmp_path / "evaluation" / "sections.tsv"
    text = sheet.read_text()
    assert "torn, cracked or lost" in text
    sheet.write_text(text.replace("torn, cracked or lost", f"torn {bad}"))
    sections = tuple(dataclasses.replace(s, stain=bad) for s in study["sections"])
    args = (bad, sections, *(study[k] for k in ("manifests", "blocks", "placements")))
    write_report(*args, {}, tmp_path / "evaluation", SETTINGS, tmp_path / "index.html")
    plain = Scripts((tmp_path / "index.html").read_text())
    assert f"torn {bad}" in plain.shown and plain.shown.count(bad) > 2
    for name in ("index.html", "sections.html"):
        found = Scripts((tmp_path / name).read_text())
        assert not [script for script in found.run if "alert" in script or "onerror" in script]
