"""A whole run tells nobody's name: not in results, logs, report, provenance, nor in what Snakemake keeps for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

WORD = "xqzsecret"
APERIO = "Aperio Image Library v11\n512x448 (64x64)|AppMag = 20|MPP = 20|User = {0}|Date = {0}|ScanScope ID = {0}|Patient = {0}"
TAGS = [(315, "s", 0, f"{WORD}-artist", True), (316, "s", 0, f"{WORD}-host", True)]


def slide(path: Path, turn: float) -> None:
    """A section with some structure, and every field of its metadata planted."""
    y, x = np.mgrid[:448, :512]
    u, v = (x - 256) * np.cos(turn) - (y - 224) * np.sin(turn), (x - 256) * np.sin(turn) + (y - 224) * np.cos(turn)
    tissue = (u / 170) ** 2 + (v / 110) ** 2 < 1
    amount = tissue * (0.3 + 0.15 * np.sin(u / 19) * np.cos(v / 13) + 0.1 * ((u - 60) ** 2 + v**2 < 900))
    pixels = np.rint(242 * 10 ** -(amount[..., None] * (0.65, 0.70, 0.29))).astype(np.uint8)
    kind: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "metadata": None, "datetime": "2009:12:29 09:59:15"}
    tifffile.imwrite(path, pixels, description=APERIO.format(WORD), extratags=TAGS, **kind)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rows = ["section\tfile\tposition_mm\tstain"]
    for i in range(4):
        slide(tmp_path / f"s{i}.svs", 0.05 * i)
        rows.append(f"s{i}\ts{i}.svs\t{0.5 * i}\tNissl")
    (tmp_path / "broken.svs").write_bytes((tmp_path / "s0.svs").read_bytes()[:3000])
    rows.append("s9\tbroken.svs\t2.0\tNissl")
    (tmp_path / "sections.tsv").write_text("\n".join(rows) + "\n")
    config = tmp_path / "config.yaml"
    config.write_text("study: quiet\nsections: sections.tsv\noutput: out\nresample: {normalise_stain: true}\n")
    return config


def leaks(folder: Path) -> list[str]:
    wanted = [WORD.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return [str(p.relative_to(folder)) for p in files if any(w in p.read_bytes().lower() for w in wanted)]


def test_no_file_of_a_whole_run_tells(workflow: Any, study: Path) -> None:
    assert len(leaks(study.parent)) == 5, "the slides themselves must hold what is looked for"
    outcome = workflow.run(study)
    assert outcome.status == 0, outcome.text
    assert WORD not in outcome.text.lower()
    assert (study.parent / "out" / "report" / "index.html").is_file() and (study.parent / "out" / "provenance.json").is_file()
    assert leaks(study.parent / "out") == []
