"""A stack without an MRI: ours, rigid and deformed, and greedy's shortest-path schedule, on the same sections.

``python tests/benchmarks/compare_stack.py STUDY.yaml [--json OUT]``, for a study that has run as far as ``stack_deform`` (its
output holds ``stack/<block>/placements.json`` and ``deformed.json``). greedy gets the registration images that our stages get,
and its pairs become a stack as in stack_greedy's ``recon``: weight (1 - NCC)^4 dz 1.1^dz, the section with the least sum of
shortest paths as root, transforms composed along the shortest paths.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from peers.harness import BENCH_PYTHON, BENCHMARKS, commit, measured, table
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from histomri.core import Grid, Image
from histomri.evaluation.overlap import local_ncc
from histomri.io.config import load_study
from histomri.io.placements import read_placements
from histomri.io.sections import read_manifest, registration_image
from histomri.registration.section_graph import edge_cost
from histomri.registration.volume import SectionPixels, block_grid, on_plane, plane_grid
from histomri.transforms import Affine
from histomri.transforms.placement import Placement

Float = NDArray[np.float64]
Stack = Mapping[str, Placement]
REACH = 3
RAYS = 72


def greedy_stack(pixels: Mapping[str, SectionPixels], ours: Stack, dof: int, folder: Path) -> tuple[dict[str, Placement], float]:
    """The placements of greedy's schedule, lying as ours at the root; and its CPU seconds."""
    names = list(ours)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        SimpleITK.WriteImage(_itk(pixels[name]), str(folder / f"{name}.mha"))
    positions = [ours[n].position_mm for n in names]
    job = {"images": [str(folder / f"{n}.mha") for n in names], "positions_mm": positions, "reach": REACH, "dof": dof}
    (folder / "job.json").write_text(json.dumps(job | {"threads": 1, "output": str(folder)}))
    run = measured([str(BENCH_PYTHON), "-m", "peers.stack_greedy", str(folder / "job.json")], folder, BENCHMARKS, 1)
    if run.status:
        raise SystemExit(f"greedy failed: {run.log}")
    result = json.loads((folder / "pairs.json").read_text())
    to_section = shortest_paths(result["pairs"], len(names), float(np.median(np.diff(positions))))
    root = next(i for i, m in enumerate(to_section) if np.array_equal(m, np.eye(3)))
    start = _matrix(ours[names[root]])
    placed = {
        n: dataclasses.replace(ours[n], affine=Affine(m @ start, "block:block", f"section:{n}"), field=None)
        for n, m in zip(names, to_section, strict=True)
    }
    return placed, float(result["cpu_s"])


def _itk(pixels: SectionPixels) -> SimpleITK.Image:
    """A section's registration image, tissue bright on 0."""
    grid = pixels.image.grid
    image = SimpleITK.GetImageFromArray(np.where(pixels.mask.data, pixels.image.data, 0).astype(np.float32))
    image.SetSpacing(tuple(float(v) for v in grid.spacing_mm[::-1]))
    image.SetOrigin(tuple(float(v) for v in grid.origin_mm[::-1]))
    return image


def _matrix(placement: Placement) -> Float:
    assert placement.affine is not None
    return placement.affine.matrix


def shortest_paths(pairs: list[dict[str, Any]], n: int, spacing_mm: float) -> list[Float]:
    """From the root's section to each of ``n`` sections (3, 3), composed along the shortest paths; the identity for the root."""
    cost, step = np.zeros((n, n)), {}
    for p in pairs:
        i, j = p["fixed"], p["moving"]
        cost[i, j] = cost[j, i] = edge_cost(p["ncc"], p["distance_mm"], spacing_mm)
        step[i, j] = np.array(p["matrix"])
        step[j, i] = np.linalg.inv(step[i, j])
    graph = csr_matrix(cost)
    root = int(dijkstra(graph, directed=False).sum(axis=1).argmin())
    _, before = dijkstra(graph, directed=False, indices=root, return_predecessors=True)
    out: list[Float] = []
    for i in range(n):
        path = [i]
        while path[-1] != root:
            path.append(int(before[path[-1]]))
        matrix = np.eye(3)
        for a, b in zip(path[::-1], path[::-1][1:], strict=False):
            matrix = step[a, b] @ matrix
        out.append(matrix)
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstructed:
    """The sections on one grid of the block's plane: images and masks (n, y, x), and positions (n,)."""

    images: NDArray[np.float32]
    masks: NDArray[np.bool_]
    positions: Float
    grid: Grid

    @staticmethod
    def of(pixels: Mapping[str, SectionPixels], stack: Stack, grid: Grid) -> Reconstructed:
        """Sections in order of position."""
        planes = np.stack([on_plane(pixels[k], p, grid) for k, p in stack.items()])
        return Reconstructed(planes[..., 0], planes[..., 1] >= 0.5, np.array([p.position_mm for p in stack.values()]), grid)

    def figures(self) -> dict[str, float]:
        """All of them, of consecutive sections (no gap between): see the functions."""
        flow = self.flows()
        second = [
            np.linalg.norm(flow[i + 1] - flow[i], axis=-1)[self.masks[i : i + 3].all(axis=0)]
            for i in flow
            if i + 1 in flow and self.near(i, 2)
        ]
        edges = self.outline()
        bends = [edges[i] - 2 * edges[i + 1] + edges[i + 2] for i in range(len(edges) - 2) if self.near(i, 2)]
        return {
            "LNCC next": self.lncc(1),
            "LNCC next but one": self.lncc(2),
            "jitter px": float(np.mean([v.mean() for v in second])),
            "jitter px 95 %": float(np.mean([np.percentile(v, 95) for v in second])),
            "edge px": float(np.nanmedian(np.abs(bends)) / self.grid.spacing_mm[0]),
            "edge px rms": float(np.sqrt(np.nanmean(np.square(bends))) / self.grid.spacing_mm[0]),
        }

    def near(self, i: int, step: int) -> bool:
        """Whether nothing is missing between section i and the one ``step`` places on."""
        usual = float(np.median(np.diff(self.positions)))
        return bool(self.positions[i + step] - self.positions[i] < (step + 0.5) * usual)

    def lncc(self, step: int) -> float:
        """Mean squared local correlation within the tissue of both, of each section and the one ``step`` places on."""
        found = [
            local_ncc(self.images[i], self.images[i + step], self.masks[i] & self.masks[i + step])
            for i in range(len(self.images) - step)
            if self.near(i, step)
        ]
        return float(np.nanmean(found))

    def flows(self) -> dict[int, Float]:
        """Where each section's tissue is found on the next one, in pixels, by OpenCV's dense inverse search (none of ours).

        How it changes from pair to pair is the jitter.
        """
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        grey = [_grey(image, mask) for image, mask in zip(self.images, self.masks, strict=True)]
        pairs = [i for i in range(len(grey) - 1) if self.near(i, 1)]
        return {i: np.asarray(search.calc(grey[i], grey[i + 1], None), float) for i in pairs}  # type: ignore[call-overload]

    def outline(self) -> Float:
        """How far the tissue reaches along rays from one centre, (n, RAYS) in mm; its second differences are the jagged edges."""
        centre = np.argwhere(self.masks.mean(axis=0) > 0.5).mean(axis=0)
        steps = np.arange(0, np.hypot(*self.masks.shape[1:]) / 2, 0.25)
        angle = np.linspace(0, 2 * np.pi, RAYS, endpoint=False)
        y = (centre[0] + np.sin(angle)[:, None] * steps).astype(np.float32)
        x = (centre[1] + np.cos(angle)[:, None] * steps).astype(np.float32)
        along = [cv2.remap(cv2.GaussianBlur(m.astype(np.float32), (0, 0), 1.0), x, y, cv2.INTER_LINEAR) for m in self.masks]
        # the last step at which the blurred mask is above a half, to a part of a step
        return np.array([[_last_crossing(row, steps) for row in rays] for rays in along]) * float(self.grid.spacing_mm[0])


def _last_crossing(row: NDArray[np.float32], steps: Float) -> float:
    inside = np.flatnonzero(row >= 0.5)
    if not len(inside) or inside[-1] + 1 >= len(row):
        return float("nan")
    i = int(inside[-1])
    return float(steps[i] + (row[i] - 0.5) / max(float(row[i] - row[i + 1]), 1e-6) * (steps[1] - steps[0]))


def _grey(image: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Brightness in the tissue by its rank, so that pale and dark sections look alike."""
    out = np.zeros(image.shape, np.uint8)
    values = image[mask]
    if len(values):
        knots = np.percentile(values, np.linspace(0, 100, 65))
        out[mask] = np.interp(values, knots, np.linspace(40, 255, 65)).astype(np.uint8)
    return out


def compare(config: Path, folder: Path) -> list[dict[str, Any]]:
    """One row of figures for each way."""
    study = load_study(config)
    output, block = study.output, study.blocks[0].id
    rigid = read_placements(output / "stack" / block / "placements.json").placed
    deformed = read_placements(output / "stack" / block / "deformed.json").placed
    pixels: dict[str, SectionPixels] = {}
    for name in rigid:
        image, mask = registration_image(read_manifest(output / "ingest" / name / "manifest.json"), 1e-6)
        pixels[name] = SectionPixels(Image(image.grid, np.asarray(image.data, np.float32)), mask)
    spacing = float(next(iter(pixels.values())).image.grid.spacing_mm.max())
    grid = plane_grid(block_grid(pixels, rigid, spacing, 10))
    ways: dict[str, tuple[Stack, float | None]] = {"ours, rigid": (rigid, None), "ours, deformed": (deformed, None)}
    ways["greedy, rigid"] = greedy_stack(pixels, rigid, 6, folder / "rigid")
    ways["greedy, affine"] = greedy_stack(pixels, rigid, 12, folder / "affine")
    rows = []
    for name, (stack, seconds) in ways.items():
        found = Reconstructed.of(pixels, stack, grid).figures()
        rows.append({"way": name, "sections": len(stack), **found, "pairs cpu s": seconds})
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, default=Path("compare_stack"), help="folder for greedy's files")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = compare(given.config, given.work.absolute())
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps({"commit": commit(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
