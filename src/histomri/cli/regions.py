"""``histomri regions CONFIG``: which sections ``region: auto`` finds on each slide, as a list and as pictures."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histomri.stages.regions import FoundOnSlide


def add_parser(subparsers: Any) -> None:
    """Describe the command's arguments."""
    parser = subparsers.add_parser(
        "regions",
        help="list and draw the sections that are found on slides with several",
        description="Looks at every slide whose rows in the sheet have the region auto:K/N, lists each section's region in "
        "level-0 pixels, and draws a picture of the slide with numbered boxes. Where one is wrong, write x,y,width,height into "
        "the sheet in place of auto:K/N. Exit status: 1 where a slide does not hold the sections that the sheet expects.",
    )
    parser.add_argument("config", type=Path, help="the study's config file")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="for the pictures (default: regions in the study's output)")


def run(args: argparse.Namespace) -> int:
    """Print the regions, write a PNG for each slide."""
    from histomri.io.config import load_study
    from histomri.stages.regions import find_regions

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is told here, in our words
    study = load_study(args.config)
    folder = args.output or study.output / "regions"
    problems = slides = 0
    for number, slide in enumerate(find_regions(study.sections, study.stage("ingest")["reading_order"]), start=1):
        slides += 1
        problems += bool(slide.problem)
        print("\n".join(lines_of(slide)), flush=True)
        if slide.found is not None:
            # names of files may repeat in other folders
            _write_picture(folder / f"{number:03d}_{slide.file.stem}.png", slide)
    if not slides:
        print("no section of the sheet has the region auto:K/N")
        return 0
    print(f"{slides} slides, pictures in {folder}")
    return 1 if problems else 0


def lines_of(slide: FoundOnSlide) -> list[str]:
    """A slide in words: its name, then the rows of the sheet with their numbers and regions."""
    if slide.found is None:
        return [f"{slide.file}: {slide.problem}"]
    ids = {row.auto_region[0]: row.id for row in slide.rows if row.auto_region}
    regions = [",".join(map(str, section.region)) for section in slide.found.sections]
    width = max(len(name) for name in ids.values())
    rows = [f"    {k:2d}  {ids.get(k, '(no row)'):{width}}  {region}" for k, region in enumerate(regions, start=1)]
    return [f"{slide.file}: {len(regions)} sections", *rows]


def _write_picture(path: Path, slide: FoundOnSlide) -> None:
    from PIL import Image as Pillow

    from histomri.stages.regions import draw_regions

    assert slide.found is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(draw_regions(slide.found)).save(path)
