"""Publishes what was registered: ITK-readable files and the graph that joins the spaces. Part of the stage ``mri``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histomri.core import Block, Section
from histomri.io.graph import write_graph
from histomri.io.placements import at_placed_positions, read_placements
from histomri.io.sections import SectionManifest, read_manifest
from histomri.io.transform_files import Sampling, write_affine, write_chain
from histomri.io.transform_sums import write_sums
from histomri.transforms.placement import Placement, Placements

LONE_REACH_MM = 0.5
INVERSE_NODES = 1_000_000


@dataclass(frozen=True)
class _Published:
    """The growing content of ``graph.json`` and the folder that it describes."""

    folder: Path
    spaces: dict[str, dict[str, Any]]
    edges: list[dict[str, Any]]


def publish_transforms(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    blocks: Sequence[Block],
    placements_by_block: Mapping[str, Path],
    folder: Path,
) -> None:
    """Write ``<block>/block_to_<section>.h5``, ``<block>/<section>_to_block.h5``, ``<block>/mri_to_block.tfm``,
    ``<block>/block_to_mri.tfm`` (``.h5`` where the planes are bent), ``SHA256SUMS`` of them and, last, ``graph.json`` under
    ``folder``, each file atomically.

    ``manifests`` and ``placements_by_block`` map ids to paths; a section without a manifest or a placement appears in the graph
    with the reason.
    """
    published = _Published(Path(folder), {}, [])
    has_mri = False
    for block in blocks:
        placements = read_placements(placements_by_block[block.id])
        published.spaces[f"block:{block.id}"] = {"type": "block"}
        members = at_placed_positions((s for s in sections if s.block == block.id), placements)
        for section in members:
            manifest = read_manifest(manifests[section.id]) if section.id in manifests else None
            placement = placements.sections.get(section.id)
            _publish_spaces(published, section, manifest, placement, plane_reach_mm(section, members))
            if manifest is not None and placement is not None and placement.is_placed:
                _publish_section(published, placement, manifest, block.id)
        has_mri |= _publish_pose(published, placements)
    if has_mri:
        published.spaces["mri"] = {"type": "mri", "axes": "LPS in the files, RAS at the command line"}
    write_sums(published.folder, _files(published))
    write_graph(published.folder / "graph.json", published.spaces, published.edges)
    _remove_orphans(published, [b.id for b in blocks])


def _files(published: _Published) -> list[str]:
    """The files that the graph names."""
    return [str(e[key]) for e in published.edges for key in ("file", "inverse_file")]


def _remove_orphans(published: _Published, blocks: Sequence[str]) -> None:
    """Files of an earlier run that the graph does not name any more would be taken for valid ones."""
    named = {published.folder / name for name in _files(published)}
    for block in blocks:
        for pattern in ("block_to_*", "*_to_block.*"):
            for file in set((published.folder / block).glob(pattern)) - named:
                file.unlink()


def plane_reach_mm(section: Section, members: Sequence[Section]) -> float:
    """How far from its plane a section may speak for a point: as far as the plane of the farther of its two neighbours.

    Half of that would do for a perfect registration; but a point of the MRI that truly lies in the section is off its plane by
    the registration error, which is of that order. Missing sections count as neighbours. A lone section reaches its thickness.
    """
    gaps = np.array([s.position_mm - section.position_mm for s in members if s.position_mm != section.position_mm])
    sides = [np.abs(gaps[gaps < 0]).min(initial=np.inf), gaps[gaps > 0].min(initial=np.inf)]
    reach = max((g for g in sides if np.isfinite(g)), default=section.thickness_mm or LONE_REACH_MM)
    return float(reach)


def _reasons(section: Section, manifest: SectionManifest | None, placement: Placement | None) -> list[str]:
    if section.status in ("missing", "excluded"):
        return [f"it is {section.status} in the sheet"]
    found = [*(manifest.flags if manifest else ()), *(placement.flags if placement else ())]
    return list(dict.fromkeys(found)) or ([] if placement and placement.is_placed else ["it was not registered"])


def _publish_spaces(
    published: _Published, section: Section, manifest: SectionManifest | None, placement: Placement | None, reach_mm: float
) -> None:
    is_placed = manifest is not None and placement is not None and placement.is_placed
    published.spaces[f"section:{section.id}"] = {
        "type": "section",
        "block": section.block,
        "stain": section.stain,
        "pixel_size_mm": None if manifest is None else manifest.pixel_size_mm,
        "shape": None if manifest is None else manifest.shape,
        "levels": 0 if manifest is None else manifest.levels,
        "position_mm": placement.position_mm if placement else section.position_mm,
        "plane_reach_mm": reach_mm,
        "confidence": placement.confidence if placement and is_placed else 0.0,
        "error_mm": placement.quality.get("error_mm") if placement and is_placed else None,
        "placed": is_placed,
        "flags": _reasons(section, manifest, placement),
        "level_0": None if manifest is None else Path(os.path.relpath(manifest.store, published.folder)).as_posix(),
    }
    region = (manifest.region if manifest else section.region) or (0, 0, 0, 0)
    published.spaces[f"slide:{section.id}"] = {"type": "slide", "section": section.id, "offset_px": [region[1], region[0]]}


def _publish_section(published: _Published, placement: Placement, manifest: SectionManifest, block: str) -> None:
    forward, name = placement.block_to_section, placement.section
    assert placement.affine is not None
    height, width = manifest.shape
    ends = [(y, x) for y in (-0.5, height - 0.5) for x in (-0.5, width - 0.5)]
    corners = manifest.grid.to_world(np.array(ends))
    in_block = placement.affine.inverse().map(corners)
    files = (f"{block}/block_to_{name}.h5", f"{block}/{name}_to_block.h5")
    write_chain(published.folder / files[0], forward, in_block)
    write_chain(published.folder / files[1], forward.inverse(), corners)
    maps = f"points of block:{block} (x, y of its plane, mm) to section:{name} (x, y, mm from the centre of its top left pixel)"
    published.edges.append(_edge(f"block:{block}", f"section:{name}", files, maps))


def _publish_pose(published: _Published, placements: Placements) -> bool:
    if placements.mri_to_block is None:
        return False
    block = placements.block
    files = (f"{block}/mri_to_block.tfm", f"{block}/block_to_mri.tfm")
    if placements.plane_bend is not None:
        files = (f"{block}/mri_to_block.h5", f"{block}/block_to_mri.h5")
        _write_bent_pose(published.folder, files, placements)
    else:
        write_affine(published.folder / files[0], placements.mri_to_block)
        write_affine(published.folder / files[1], placements.mri_to_block.inverse())
    maps = f"points of the MRI (x, y, z, LPS mm) to block:{block} (x, y, z mm)"
    published.edges.append(_edge("mri", f"block:{block}", files, maps))
    return True


def _write_bent_pose(folder: Path, files: tuple[str, str], placements: Placements) -> None:
    """The pose with its bend, so that ITK and we agree up to the block's size away from it.

    The inverse is sampled: at the kinks of a field that is linear between nodes it was off by up to 0.07 mm, by 0.0006 mm in
    the median.
    """
    pose, bend = placements.pose, placements.plane_bend
    assert pose is not None
    assert bend is not None
    shape = np.array(bend.grid.shape)
    ends = bend.grid.crop(-shape, 2 * shape).corners()
    write_chain(folder / files[0], pose, pose.inverse().map(ends))
    write_chain(folder / files[1], pose.inverse(), ends, Sampling(max_nodes=INVERSE_NODES))


def _edge(start: str, end: str, files: tuple[str, str], maps: str) -> dict[str, Any]:
    return {"from": start, "to": end, "file": files[0], "inverse_file": files[1], "maps": maps}
