"""The study of ``mouse_nissl`` names what the data holds."""

from __future__ import annotations

from pathlib import Path

from histomri.io.config import load_study


def test_every_section_of_the_list_is_in_the_sheet_and_absent_ones_are_missing(shared_data: Path, tmp_path: Path, script) -> None:
    study = load_study(script("studies/mouse_nissl.py").write_study(tmp_path, shared_data))
    used = [s for s in study.sections if s.is_used]
    assert len(study.sections) == 668 and len(used) == 660
    assert [int(s.id[-4:]) for s in study.sections if s.status == "missing"] == [6, 7, 23, 25, 27, 421, 422, 423]
    assert all(s.file is not None and s.file.is_file() and s.file.stem.endswith(s.id[-4:]) for s in used)
    assert all(abs(s.position_mm - 0.02 * (int(s.id[-4:]) - 1)) < 1e-9 for s in study.sections)
    assert not any(study.has_mri(b.id) for b in study.blocks)


def test_a_run_of_sections_can_be_asked_for(shared_data: Path, tmp_path: Path, script) -> None:
    study = load_study(script("studies/mouse_nissl.py").write_study(tmp_path, shared_data, every=2, first=380, count=10))
    assert [s.id[-4:] for s in study.sections] == ["0380", "0382", "0384", "0386", "0388"]
