"""The nouns: grids, images, sections, stacks, landmarks, errors. NumPy only."""

from histomri.core.errors import HistomriError, InputError, RegistrationError
from histomri.core.grid import Grid
from histomri.core.image import Image
from histomri.core.landmarks import Landmarks
from histomri.core.section import Block, Section, Stack

__all__ = [
    "Block",
    "Grid",
    "HistomriError",
    "Image",
    "InputError",
    "Landmarks",
    "RegistrationError",
    "Section",
    "Stack",
]
