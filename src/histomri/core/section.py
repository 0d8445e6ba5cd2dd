"""Records of sections, stacks and blocks. No pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

STATUSES = ("ok", "damaged", "missing", "excluded")
FLIPS = ("auto", "none", "horizontal")
MIRRORS = ("no", "yes", "auto")
READING_ORDERS = ("row-major", "row-major-rtl", "column-major", "column-major-rtl", "snake", "snake-rtl")


@dataclass(frozen=True)
class Section:
    """One section of tissue: a row of ``sections.tsv``.

    ``position_mm`` lies along the cutting axis; ``pixel_size_mm`` is None where the file's own applies;
    ``region`` is (x, y, width, height) in level-0 pixels of the slide, None for the whole slide; ``auto_region`` is (k, n) for
    the k-th of n sections on the slide, to be found when it is ingested. ``transform`` is a file of a rough 2D transform from
    section ``transform_from`` to this one, ``lock`` one that ``histomri lock`` wrote: both are given by hand.
    ``extra`` carries the sheet's unknown columns.
    """

    id: str
    file: Path | None
    position_mm: float
    block: str = "block"
    stain: str = "histology"
    thickness_mm: float | None = None
    pixel_size_mm: float | None = None
    region: tuple[int, int, int, int] | None = None
    auto_region: tuple[int, int] | None = None
    channel: str | None = None
    status: str = "ok"
    flip: str = "auto"
    rotation_deg: float | None = None
    blockface: Path | None = None
    transform: Path | None = None
    transform_from: str | None = None
    lock: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def is_used(self) -> bool:
        """Whether the section takes part at all (it has pixels and is not excluded)."""
        return self.status in ("ok", "damaged")

    @property
    def faces(self) -> tuple[bool, ...]:
        """Whether the section may lie mirrored on its slide (True), not mirrored (False), or either."""
        return {"none": (False,), "horizontal": (True,), "auto": (False, True)}[self.flip]


@dataclass(frozen=True)
class Block:
    """One block of tissue: a row of ``blocks.tsv``; ``pose`` is a file of a rough transform from the MRI to the block."""

    id: str
    mri: Path | None = None
    mri_mask: Path | None = None
    blockface_pixel_size_mm: float | None = None
    mirror: str = "no"
    pose: Path | None = None

    @property
    def hands(self) -> tuple[bool, ...]:
        """Whether the block may be a mirror image of its MRI (True), not one (False), or either."""
        return {"no": (False,), "yes": (True,), "auto": (False, True)}[self.mirror]


@dataclass(frozen=True)
class Stack:
    """The sections of one block ordered by position, missing ones included."""

    block: str
    sections: tuple[Section, ...]

    def __post_init__(self) -> None:
        positions = [s.position_mm for s in self.sections]
        if positions != sorted(positions):
            object.__setattr__(self, "sections", tuple(sorted(self.sections, key=lambda s: (s.position_mm, s.id))))

    @property
    def used(self) -> tuple[Section, ...]:
        """The sections that have pixels and are not excluded."""
        return tuple(s for s in self.sections if s.is_used)

    def neighbours(self, section: Section, reach: int) -> tuple[Section, ...]:
        """The used sections at most ``reach`` places away on either side (nearest first)."""
        used = [s for s in self.used if s.id != section.id]
        before = [s for s in used if (s.position_mm, s.id) < (section.position_mm, section.id)][-reach:]
        after = [s for s in used if (s.position_mm, s.id) > (section.position_mm, section.id)][:reach]
        return tuple(sorted(before + after, key=lambda s: abs(s.position_mm - section.position_mm)))
