"""A section of the digital block that is out of focus is flagged, whichever it is; a sharp one never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from histomri.core import Section
from histomri.evaluation.acceptance import Evidence, Thresholds, flag_sections
from histomri.io.sections import SectionManifest, read_manifest
from histomri.stages.focus import QUALITY_TILE_PX, QUALITY_TILES, spread_tiles
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.testing.slides import add_artefacts, render_section, write_slide
from histomri.testing.spec import SMALL
from histomri.testing.truth import draw_truth


def measured(folder: Path, name: str, pixels: Any, pixel_size_mm: float) -> SectionManifest:
    write_slide(folder / f"{name}.tif", pixels, pixel_size_mm)
    manifest = folder / "ingest" / name / "manifest.json"
    section = Section(name, folder / f"{name}.tif", 0.0)
    ingest_section(section, folder / "sections" / f"{name}.ome.zarr", manifest, IngestSettings())
    return read_manifest(manifest)


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[SectionManifest, SectionManifest]]:
    """Six sections of the small block, each as it is and out of focus by one pixel (the camera's noise comes after the lens)."""
    folder, truth = tmp_path_factory.mktemp("focus"), draw_truth(SMALL)
    found = []
    for section in [s for s in truth.sections.values() if s.bad is None and s.stain == "he"][:4] + [
        s for s in truth.sections.values() if s.bad is None and s.stain == "lfb"
    ][:2]:
        pixels = render_section(truth, section)
        add_artefacts(pixels, section, truth.spec.seed)
        noise = np.random.default_rng(0).normal(0, 1.4, pixels.shape)
        soft = np.clip(cv2.GaussianBlur(pixels, (0, 0), 1.0) + noise, 0, 255).astype(np.uint8)
        size = section.pixel_size_mm
        found.append((measured(folder, section.id, pixels, size), measured(folder, section.id + "_soft", soft, size)))
    return found


def flagged(manifests: list[SectionManifest]) -> list[int]:
    """Places of the sections that are flagged for their focus."""
    evidence = [
        Evidence(m.section, "any", sharpness=m.sharpness or float("nan"), soft_share=m.soft_share or 0.0) for m in manifests
    ]
    return [i for i, flags in enumerate(flag_sections(evidence, Thresholds())) if any(f.code == "focus" for f in flags)]


def test_sharp_sections_are_never_flagged(block: list[tuple[SectionManifest, SectionManifest]]) -> None:
    assert all(sharp.sharpness for sharp, _ in block)
    assert flagged([sharp for sharp, _ in block]) == []


@pytest.mark.parametrize("i", range(6))
def test_the_one_out_of_focus_is_found(block: list[tuple[SectionManifest, SectionManifest]], i: int) -> None:
    assert flagged([soft if k == i else sharp for k, (sharp, soft) in enumerate(block)]) == [i]


@pytest.mark.parametrize("factor", [1, 8, 64, 256])
def test_focus_is_measured_in_the_tissue_only_however_coarse_the_mask(factor: int) -> None:
    """Of a gigapixel slide a pixel of the mask is larger than a tile."""
    where = np.zeros((37, 41), bool)
    where[9:30, 12:33] = True
    where[20, 20] = False
    shape = (37 * factor * (64 if factor == 1 else 1) - factor // 3, 41 * factor * (64 if factor == 1 else 1))
    mask = np.kron(where, np.ones((64, 64), bool)) if factor == 1 else where
    corners = spread_tiles(mask[: -(-shape[0] // factor), : -(-shape[1] // factor)], factor, shape)
    whole = np.kron(mask, np.ones((factor, factor), bool))[: shape[0], : shape[1]]
    assert 0 < len(corners) <= QUALITY_TILES and len(set(corners)) == len(corners)
    assert all(whole[y : y + QUALITY_TILE_PX, x : x + QUALITY_TILE_PX].all() for y, x in corners)
    assert not spread_tiles(np.zeros_like(mask), factor, shape)
