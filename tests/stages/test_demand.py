"""What a job asks of a cluster is more than what such jobs were measured to take, and not so much that no node has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from histomri.stages.demand import AROUND_MB, DEMANDS, Size, memory_mb, minutes

# Peak memory (MB) and CPU seconds as Snakemake measured them, the largest of each rule: the tiny digital block
# (5 sections), the demo (29 sections of 2692 x 2410 px), 37 and 370 sections of BigBrain with an MRI of 49 million voxels.
TINY, DEMO, TENTH, WHOLE = Size(5, 0.1), Size(29, 2.4), Size(37, 48.9), Size(370, 48.9)
MEASURED = [
    ("blockface_volume", TINY, 228, 6),
    ("blockface_volume", DEMO, 429, 22),
    ("blockface_place", TINY, 320, 23),
    ("blockface_place", DEMO, 359, 60),
    ("stack_edges", Size(16), 287, 24),
    ("stack_order", TINY, 105, 2),
    ("stack_order", DEMO, 288, 15),
    ("stack_solve", DEMO, 202, 3),
    ("stack_solve", WHOLE, 138, 6),
    ("mri_pose", TINY, 297, 12),
    ("mri_pose", DEMO, 359, 63),
    ("mri_pose", TENTH, 944, 99),
    ("mri_pose", WHOLE, 469, 63),
    ("mri_refine", TINY, 281, 4),
    ("mri_refine", DEMO, 514, 51),
    ("mri_refine", TENTH, 976, 72),
    ("mri_refine", WHOLE, 1332, 856),
    ("mri_verify", TINY, 231, 4),
    ("mri_verify", DEMO, 306, 27),
    ("mri_transforms", TINY, 288, 4),
    ("mri_transforms", DEMO, 297, 6),
    ("mri_transforms", WHOLE, 376, 16),
    ("evaluate", TINY, 319, 3),
    ("evaluate", DEMO, 441, 14),
    ("evaluate", TENTH, 425, 8),
    ("report", DEMO, 405, 6),
    ("report", TENTH, 395, 5),
    ("provenance", DEMO, 176, 2),
    # levels and volumes of some 600 MB each; what is read at once does not grow with them
    ("provenance", Size(1), 329, 38),
    ("resample_volume", DEMO, 260, 8),
    ("resample_volume", WHOLE, 325, 33),
    ("ingest_section", Size(1, 0, 2_000_000), 147, 2),
]


@pytest.mark.parametrize(("rule", "size", "peak_mb", "seconds"), MEASURED)
def test_what_is_asked_for_is_above_what_was_measured(rule: str, size: Size, peak_mb: float, seconds: float):
    asked = memory_mb(rule, size) - AROUND_MB
    assert asked >= 1.3 * peak_mb
    assert minutes(rule, size) * 60 >= 10 * seconds


@pytest.mark.parametrize(("rule", "size", "peak_mb", "seconds"), [m for m in MEASURED if m[2] > 400])
def test_what_is_asked_for_is_not_many_times_what_large_jobs_take(rule: str, size: Size, peak_mb: float, seconds: float):
    assert memory_mb(rule, size) <= 4.5 * (peak_mb + AROUND_MB)


def test_a_retry_asks_for_half_as_much_again():
    sizes = [memory_mb("mri_refine", DEMO, attempt=n) for n in (1, 2, 3)]
    assert sizes[1] == pytest.approx(1.5 * sizes[0], abs=1)
    assert sizes[2] == pytest.approx(2.25 * sizes[0], abs=1)
    assert minutes("mri_refine", DEMO, 2) == pytest.approx(1.5 * minutes("mri_refine", DEMO), abs=1)


def test_every_rule_has_its_figures_and_every_figure_its_rule(checkout: Path):
    texts = [f.read_text() for f in (checkout / "workflow" / "rules").glob("*.smk")]
    rules = {name for text in texts for name in re.findall(r"^rule (\w+):", text, re.M)}
    assert rules == set(DEMANDS)
    for text in texts:
        for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)*)", text, re.M):
            assert f'memory_mb("{name}", ' in body, name
            assert f'minutes("{name}", ' in body, name
