"""The stage mri from slides on: a pose in doubt is refused with the candidates; unseen planes give no confidence."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Picture

sys.path.insert(0, str(Path(__file__).parents[1] / "registration"))
from synthetic import Tissue, centred

from histomri.core import Block, Image, RegistrationError, Section
from histomri.io.nifti import write_nifti
from histomri.io.placements import read_placements, write_placements
from histomri.registration import pose
from histomri.registration.pose import PoseCandidate, PoseResult
from histomri.registration.verification import UNSEEN
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.stages.mri import MriSettings, _hypotheses, find_pose
from histomri.stages.pose_pictures import SIDE_PX
from histomri.stages.verification import verify
from histomri.transforms import Affine
from histomri.transforms.placement import Placement, Placements

N, PIXEL_MM = 64, 0.2
PLACES = (-1.2, -0.4, 0.4, 1.2)
SETTINGS = MriSettings(volume_px=24, work_px=60, min_confidence=0.75)


@dataclasses.dataclass(frozen=True)
class Study:
    """A block and its MRI, whose frames are one; ``placements`` are the true ones."""

    folder: Path
    sections: list[Section]
    manifests: dict[str, Path]
    block: Block
    placements: Placements

    def given(self, placements: Placements | None = None) -> tuple[list[Section], dict[str, Path], Block, Path]:
        """What the stage takes; placements are written anew."""
        path = self.folder / "placements.json"
        write_placements(path, self.placements if placements is None else placements)
        return self.sections, self.manifests, self.block, path

    def pose(self) -> Path:
        return self.folder / "mri" / "pose.json"


def make(folder: Path, tissue: Tissue) -> Study:
    grid, sections, manifests, places = centred(N, PIXEL_MM), [], {}, {}
    for number, z in enumerate(PLACES):
        name = f"s{number}"
        points = np.concatenate([np.full((N, N, 1), z), grid.points()], axis=-1)
        shade = np.where(tissue.inside(points), 1.5 + 0.5 * tissue.texture(points), 0)
        section = Section(name, folder / f"{name}.png", z, block="b")
        Picture.fromarray(np.clip(240 - 70 * shade, 0, 255).astype(np.uint8)).save(section.file)
        manifests[name] = folder / "ingest" / name / "manifest.json"
        ingest_section(section, folder / f"{name}.ome.zarr", manifests[name], IngestSettings(), PIXEL_MM)
        matrix = np.eye(3)
        matrix[:2, 2] = (N - 1) / 2 * PIXEL_MM
        places[name] = Placement(name, z, Affine(matrix, "block:b", f"section:{name}"))
        sections.append(section)
    mri = tissue.image(centred(40, 0.3, 3))[0]
    write_nifti(folder / "mri.nii.gz", Image(mri.grid, mri.data))
    (folder / "mri").mkdir()
    return Study(folder, sections, manifests, Block("b", folder / "mri.nii.gz"), Placements("b", places))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make(tmp_path_factory.mktemp("mri"), Tissue(3, 7))


def found_with(confidence: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the search, which takes its time and has tests of its own: two poses, and how sure the first of them is."""
    upright, turned = np.eye(4), np.diag([1.0, -1.0, -1.0, 1.0])
    candidates = [PoseCandidate(matrix, 0.5, -0.1, 0.9, False) for matrix in (upright, turned)]
    monkeypatch.setattr(pose, "find_pose", lambda *_, **__: PoseResult(candidates[0], confidence, candidates))


def test_a_pose_less_sure_than_asked_is_refused_with_pictures_of_the_candidates(study: Study, monkeypatch) -> None:
    found_with(0.74, monkeypatch)
    with pytest.raises(RegistrationError, match=r"confidence 0\.74, less than mri.min_confidence = 0.75; look at .*refused.png"):
        find_pose(*study.given(), study.pose(), SETTINGS)
    assert not study.pose().exists() and not study.pose().with_suffix(".png").exists()
    record = json.loads(study.pose().with_name("pose_refused.json").read_text())
    assert record["confidence"] == 0.74 and len(record["candidates"]) == 2
    picture = cv2.imread(str(study.pose().with_name("pose_refused.png")))
    assert picture is not None and picture.shape[1] == 3 * SIDE_PX and picture.std() > 10


@pytest.mark.parametrize("least", [0.0, 0.74])
def test_a_pose_that_is_taken_removes_an_earlier_refusal(study: Study, monkeypatch, least: float) -> None:
    left = [study.pose().with_name(f"pose_refused.{kind}") for kind in ("json", "png")]
    for file in left:
        file.write_text("of an earlier run")
    found_with(0.74, monkeypatch)
    find_pose(*study.given(), study.pose(), dataclasses.replace(SETTINGS, min_confidence=least))
    assert json.loads(study.pose().read_text())["confidence"] == 0.74 and study.pose().with_suffix(".png").exists()
    assert not [file for file in left if file.exists()]


def test_sections_of_which_none_is_sure_are_taken_as_mounted_too_and_their_guesses_count_for_nothing(study: Study) -> None:
    guesses = {k: dataclasses.replace(p, confidence=0.05) for k, p in study.placements.sections.items()}
    guesses["s0"] = dataclasses.replace(guesses["s0"], confidence=0.0)
    found, _ = _hypotheses(study.sections, study.manifests, dataclasses.replace(study.placements, sections=guesses), 0.2)
    assert {name: weight for name, (_, weight) in found.items()} == {"neighbours": 0.0, "mounted": 1.0}


def verified(study: Study, **changes: Placement) -> Placements:
    """The true placements, some changed, after verification."""
    placed = Placements("b", {**study.placements.sections, **changes}, Affine(np.eye(4), "mri", "block:b"))
    sections, manifests, block, path = study.given(placed)
    verify(sections, manifests, block, path, study.folder / "verified.json", SETTINGS)
    return read_placements(study.folder / "verified.json")


def test_a_section_whose_plane_the_mri_does_not_show_says_so_and_is_not_sure(study: Study) -> None:
    far = dataclasses.replace(
        study.placements.sections["s0"], position_mm=-40.0, quality={"error_mm": 0.1, "verified_dice": 0.9, "pair_score": 0.5}
    )
    unsure = dataclasses.replace(study.placements.sections["s3"], position_mm=40.0, confidence=0.05)
    found = verified(study, s0=far, s3=unsure).sections
    assert found["s0"].confidence == UNSEEN and found["s3"].confidence == 0.05
    assert found["s0"].quality == {"pair_score": 0.5}
    for name in ("s0", "s3"):
        assert found[name].is_doubtful and "the MRI shows no tissue on its plane" in found[name].flags[-1]
    others = [found[f"s{i}"] for i in (1, 2)]
    assert all(p.quality["verified_dice"] > 0.9 and not any("shows no tissue" in f for f in p.flags) for p in others)
    assert min(p.confidence for p in others) > UNSEEN
