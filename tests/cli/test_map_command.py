"""``histomri map`` as other programs use it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from study import ERROR_MM, make_study, ras_of

from histomri.cli import main

PIXELS = np.array([[0.0, 0.0], [450.25, 300.5], [602.0, 350.0]])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


def _map(config: Path, start: str, end: str, given: Path, out: Path, *more: str) -> int:
    return main(["map", "--config", str(config), "--from", start, "--to", end, str(given), "--output", str(out), *more])


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, points: np.ndarray, header: str = "x,y") -> Path:
    path.write_text(header + "\n" + "".join(",".join(map(str, p)) + "\n" for p in points))
    return path


def _xyz(rows: list[dict[str, str]], names: str = "xyz") -> np.ndarray:
    return np.array([[float(r[n]) for n in names] for r in rows])


def test_section_pixels_arrive_in_ras_millimetres(config: Path, tmp_path: Path) -> None:
    assert _map(config, "section:a", "mri", _write(tmp_path / "in.csv", PIXELS), tmp_path / "out.csv") == 0
    np.testing.assert_allclose(_xyz(_table(tmp_path / "out.csv")), ras_of(PIXELS), atol=2e-5)


def test_points_carry_the_error_to_be_expected(config: Path, tmp_path: Path) -> None:
    _map(config, "section:a", "mri", _write(tmp_path / "in.csv", PIXELS), tmp_path / "mri.csv")
    assert [r["error_mm"] for r in _table(tmp_path / "mri.csv")] == [f"{ERROR_MM:.6f}"] * len(PIXELS)
    _map(config, "slide:a", "section:a", _write(tmp_path / "in.csv", PIXELS + np.array([40, 20])), tmp_path / "own.csv")
    assert {float(r["error_mm"]) for r in _table(tmp_path / "own.csv")} == {0.0}  # an offset is exact
    _map(config, "mri", "block:b", tmp_path / "mri.csv", tmp_path / "block.csv")
    assert {r["error_mm"] for r in _table(tmp_path / "block.csv")} == {""}  # nothing tells of a pose alone
    _map(config, "section:lost", "mri", _write(tmp_path / "in.csv", PIXELS), tmp_path / "lost.csv")
    assert {r["error_mm"] for r in _table(tmp_path / "lost.csv")} == {""}


def test_there_and_back(config: Path, tmp_path: Path) -> None:
    _map(config, "section:a", "mri", _write(tmp_path / "in.csv", PIXELS), tmp_path / "mri.csv")
    _map(config, "mri", "section:a", tmp_path / "mri.csv", tmp_path / "back.csv")
    rows = _table(tmp_path / "back.csv")
    assert list(rows[0]) == ["x", "y", "error_mm", "reason"]
    np.testing.assert_allclose(_xyz(rows, "xy"), PIXELS, atol=2e-3)


def test_a_slide_counts_from_the_top_left_of_the_file(config: Path, tmp_path: Path) -> None:
    _map(config, "slide:a", "mri", _write(tmp_path / "in.csv", PIXELS + np.array([40, 20])), tmp_path / "out.csv")
    np.testing.assert_allclose(_xyz(_table(tmp_path / "out.csv")), ras_of(PIXELS), atol=2e-5)


def test_corner_origin_is_half_a_pixel_off(config: Path, tmp_path: Path) -> None:
    given = _write(tmp_path / "in.csv", PIXELS + 0.5)
    _map(config, "section:a", "mri", given, tmp_path / "out.csv", "--origin", "corner")
    np.testing.assert_allclose(_xyz(_table(tmp_path / "out.csv")), ras_of(PIXELS), atol=2e-5)
    _map(config, "mri", "section:a", tmp_path / "out.csv", tmp_path / "back.csv", "--origin", "corner")
    np.testing.assert_allclose(_xyz(_table(tmp_path / "back.csv"), "xy"), PIXELS + 0.5, atol=2e-3)


def test_rows_and_other_columns_stay_and_lost_points_say_why(config: Path, tmp_path: Path) -> None:
    text = 'name,y,x,note\nb,300,450,"one, two"\na,-50,10,far\nc,,,empty\nb,0,0,\n'
    (tmp_path / "in.csv").write_text(text)
    assert _map(config, "section:a", "block:b", tmp_path / "in.csv", tmp_path / "out.csv") == 0
    rows = _table(tmp_path / "out.csv")
    assert list(rows[0]) == ["name", "y", "z", "x", "note", "error_mm", "reason"]
    assert [(r["name"], r["note"]) for r in rows] == [("b", "one, two"), ("a", "far"), ("c", "empty"), ("b", "")]
    assert [r["reason"] for r in rows] == ["", "outside of the image of section a", "no coordinates", ""]
    assert [r["x"] == "" for r in rows] == [False, True, True, False]
    assert len(rows[0]["x"].split(".")[1]) >= 4
    assert float(rows[0]["z"]) == 1.0


def test_an_unplaced_section_gives_reasons_and_exit_status_0(config: Path, tmp_path: Path) -> None:
    assert _map(config, "section:lost", "mri", _write(tmp_path / "in.csv", PIXELS), tmp_path / "out.csv") == 0
    rows = _table(tmp_path / "out.csv")
    assert {(r["x"], r["y"], r["z"], r["reason"]) for r in rows} == {("", "", "", "section lost was not placed: matches nothing")}


@pytest.mark.parametrize(
    ("text", "says"),
    [("x,y\n1,2\n1,abc\n", "row 2 (line 3)"), ("x,y\n1,2,3\n", "row 1 (line 2)"), ("x,why\n1,2\n", "no column y"), ("", "empty")],
)
def test_malformed_input_names_its_row(config: Path, tmp_path: Path, capsys, text: str, says: str) -> None:
    (tmp_path / "in.csv").write_text(text)
    assert _map(config, "section:a", "mri", tmp_path / "in.csv", tmp_path / "out.csv") != 0
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_an_unknown_space_is_an_error(config: Path, tmp_path: Path, capsys) -> None:
    assert _map(config, "section:b", "mri", _write(tmp_path / "in.csv", PIXELS), tmp_path / "out.csv") != 0
    assert "section:a" in capsys.readouterr().err


def _feature(kind: str, coordinates: object, **more: object) -> dict:
    return {
        "type": "Feature",
        "id": kind,
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"name": kind, **more},
    }


def _features() -> list[dict]:
    line = (PIXELS + 0.5).tolist()
    ring = [[10.5, 10.5], [100.5, 10.5], [100.5, 90.5], [10.5, 10.5]]
    return [
        _feature("Point", line[1]), _feature("MultiPoint", line),
        _feature("LineString", line), _feature("MultiLineString", [line, ring]),
        _feature("Polygon", [ring, ring]), _feature("MultiPolygon", [[ring], [ring, ring]]), _feature("Point", [5000.0, 0.0]),
    ]  # fmt: skip


@pytest.mark.parametrize("bare", [True, False])
def test_geojson_keeps_its_structure_and_counts_from_corners(config: Path, tmp_path: Path, bare: bool) -> None:
    given = _features()
    document = given if bare else {"type": "FeatureCollection", "features": given}
    (tmp_path / "in.geojson").write_text(json.dumps(document))
    assert _map(config, "section:a", "mri", tmp_path / "in.geojson", tmp_path / "out.geojson") == 0
    out = json.loads((tmp_path / "out.geojson").read_text())
    out = out if bare else out["features"]
    truth = ras_of(PIXELS)
    np.testing.assert_allclose(out[0]["geometry"]["coordinates"], truth[1], atol=2e-5)
    np.testing.assert_allclose(out[2]["geometry"]["coordinates"], truth, atol=2e-5)
    np.testing.assert_allclose(out[3]["geometry"]["coordinates"][0], truth, atol=2e-5)
    for before, after in zip(given[:-1], out[:-1], strict=True):
        assert after["properties"] == {**before["properties"], "error_mm": ERROR_MM}
        assert _count(after["geometry"]["coordinates"]) * 2 == _count(before["geometry"]["coordinates"]) * 3
    assert out[-1]["geometry"] is None
    assert "outside" in out[-1]["properties"]["reason"]


def _count(nested: object) -> int:
    return sum(map(_count, nested)) if isinstance(nested, list) else 1


def test_geojson_comes_back_as_it_went(config: Path, tmp_path: Path) -> None:
    (tmp_path / "in.geojson").write_text(json.dumps(_features()[:-1]))
    _map(config, "section:a", "mri", tmp_path / "in.geojson", tmp_path / "mri.geojson")
    _map(config, "mri", "section:a", tmp_path / "mri.geojson", tmp_path / "back.geojson")
    back = json.loads((tmp_path / "back.geojson").read_text())
    np.testing.assert_allclose(back[4]["geometry"]["coordinates"], _features()[4]["geometry"]["coordinates"], atol=2e-3)


def test_geojson_keeps_an_unknown_error_unknown_and_adds_known_ones(config: Path, tmp_path: Path) -> None:
    def errors(path: Path) -> set[float | None]:
        return {f["properties"].get("error_mm") for f in json.loads(path.read_text())}

    (tmp_path / "in.geojson").write_text(json.dumps(_features()[:-1]))
    _map(config, "section:a", "mri", tmp_path / "in.geojson", tmp_path / "mri.geojson")
    _map(config, "mri", "section:a", tmp_path / "mri.geojson", tmp_path / "back.geojson")
    assert errors(tmp_path / "back.geojson") == {round(2**0.5 * ERROR_MM, 6)}
    _map(config, "mri", "block:b", tmp_path / "mri.geojson", tmp_path / "block.geojson")
    assert errors(tmp_path / "block.geojson") == {None}
    _map(config, "block:b", "section:a", tmp_path / "block.geojson", tmp_path / "again.geojson")
    assert errors(tmp_path / "again.geojson") == {None}


def test_lines_get_new_points_only_when_asked(config: Path, tmp_path: Path) -> None:
    (tmp_path / "in.geojson").write_text(json.dumps(_feature("LineString", [[0.5, 0.5], [100.5, 0.5]])))
    _map(config, "section:a", "mri", tmp_path / "in.geojson", tmp_path / "out.geojson", "--densify", "20")
    assert len(json.loads((tmp_path / "out.geojson").read_text())["geometry"]["coordinates"]) == 6


def test_a_broken_feature_is_named(config: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "in.geojson").write_text(json.dumps([_feature("Point", [1, 2]), _feature("Point", [1, "a"])]))
    assert _map(config, "section:a", "mri", tmp_path / "in.geojson", tmp_path / "out.geojson") != 0
    assert "feature 2" in capsys.readouterr().err
