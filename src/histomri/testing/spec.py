"""What to make: the parameters of a digital block."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PhantomSpec:
    """Parameters of a digital block; lengths in mm, ``size_mm`` in (z, y, x).

    Raises ``ValueError`` for a block that cannot be cut as asked.
    """

    seed: int = 0
    size_mm: tuple[float, float, float] = (15.0, 25.0, 25.0)
    n_sections: int = 30
    spacing_mm: float = 0.5
    pixel_size_mm: float = 0.008
    mri_spacing_mm: float = 0.3
    blockface: bool = True
    blockface_pixel_mm: float = 0.045
    bend_mm: float = 0.5
    mirrored_fraction: float = 0.15
    bad_fraction: float = 0.14
    stains: tuple[str, ...] = ("he", "lfb")
    n_landmarks: int = 160
    study: str = "digital-block"

    def __post_init__(self) -> None:
        if self.n_sections < 3:
            raise ValueError(f"A digital block needs at least 3 sections, found n_sections = {self.n_sections}.")
        cut = self.n_sections * self.spacing_mm
        if cut > self.size_mm[0] + 1e-9:
            raise ValueError(
                f"{self.n_sections} sections {self.spacing_mm} mm apart need a block {cut:g} mm long, found {self.size_mm[0]:g}."
            )
        if not (0 <= self.bad_fraction <= 0.5 and 0 <= self.mirrored_fraction <= 1):
            raise ValueError("bad_fraction must lie in 0..0.5 and mirrored_fraction in 0..1.")

    @property
    def positions_mm(self) -> list[float]:
        """Positions of the sections, centred in the block."""
        first = (self.size_mm[0] - (self.n_sections - 1) * self.spacing_mm) / 2
        return [round(first + i * self.spacing_mm, 6) for i in range(self.n_sections)]


DEMO = PhantomSpec()
SMALL = PhantomSpec(
    size_mm=(8.4, 18.0, 18.0),
    n_sections=12,
    spacing_mm=0.7,
    pixel_size_mm=0.03,
    mri_spacing_mm=0.4,
    blockface_pixel_mm=0.08,
    bend_mm=0.35,
    bad_fraction=0.25,
    n_landmarks=80,
)
TINY = PhantomSpec(
    size_mm=(5.0, 12.0, 12.0),
    n_sections=5,
    spacing_mm=1.0,
    pixel_size_mm=0.04,
    mri_spacing_mm=0.5,
    blockface_pixel_mm=0.1,
    bend_mm=0.2,
    n_landmarks=20,
)
PRESETS = {"demo": DEMO, "small": SMALL, "tiny": TINY}
