"""A published study with a known truth, for the commands that ask its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histomri.core import Block, Grid, Section
from histomri.io.placements import write_placements
from histomri.io.sections import SectionManifest, write_manifest
from histomri.stages.transforms import publish_transforms
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements

SHAPE = (351, 603)
PIXEL_MM = (0.015, 0.015)
POSE = Affine.from_parts([[0.1, 1.0, 0.0], [0.0, 0.1, -1.0], [1.1, 0.0, 0.1]], [1.0, 9.0, -2.0])
ERROR_MM = 0.25
FIELD = DisplacementField(
    Grid((9, 11), 1.0), np.random.default_rng(4).normal(size=(9, 11, 2)).astype(np.float32) * np.float32(0.05)
)
PLACEMENTS = Placements(
    "b",
    {
        "a": Placement("a", 1.0, Affine.from_parts([[0.1, 0.9], [1.0, 0.1]], [0.2, 0.3]), FIELD, quality={"error_mm": ERROR_MM}),
        "lost": Placement("lost", 1.5, None, flags=("matches nothing",)),
    },
    POSE,
)


def make_study(folder: Path) -> Path:
    """A study whose section ``a`` (351 x 603 pixels of 15 um, a region of its slide) is placed, ``lost`` not; its config."""
    (folder / "sections.tsv").write_text(
        "section\tfile\tblock\tposition_mm\tregion\na\ta.svs\tb\t1.0\t40,20,603,351\nlost\tl.svs\tb\t1.5\t\n"
    )
    (folder / "blocks.tsv").write_text("block\tmri\nb\tmri.nii.gz\n")
    config = folder / "study.yaml"
    config.write_text("study: test\nsections: sections.tsv\nblocks: blocks.tsv\noutput: out\n")
    out = folder / "out"
    sections = [Section("a", Path("a.svs"), 1.0, "b", region=(40, 20, 603, 351)), Section("lost", Path("l.svs"), 1.5, "b")]
    manifests = {s.id: out / "ingest" / s.id / "manifest.json" for s in sections}
    for s in sections:
        store = out / "sections" / f"{s.id}.ome.zarr"
        write_manifest(
            manifests[s.id], SectionManifest(s.id, store, SHAPE, PIXEL_MM, 3, ("grey",), "uint8", (255.0,), region=s.region)
        )
    write_placements(out / "mri" / "b" / "placements.json", PLACEMENTS)
    publish_transforms(
        sections, manifests, [Block("b", Path("mri.nii.gz"))], {"b": out / "mri/b/placements.json"}, out / "transforms"
    )
    return config


def ras_of(pixels_xy: np.ndarray) -> np.ndarray:
    """Truth: RAS mm (x, y, z) of pixels (x, y) of section ``a``, counted from the centre of the first."""
    plane = PLACEMENTS.sections["a"].block_to_section.inverse().map(np.asarray(pixels_xy, float)[:, ::-1] * 0.015)
    lps = POSE.inverse().map(np.insert(plane, 0, 1.0, axis=1))
    return lps[:, ::-1] * [-1, -1, 1]
