"""A DICOM whole-slide series, as a scanner or a hospital's archive writes it: one file for each level, label and overview.

VL Whole Slide Microscopy Image Storage (PS3.3 A.32.8), explicit VR little endian, JPEG baseline frames in encapsulated pixel
data (PS3.5 A.4), TILED_FULL. openslide and pydicom open it. Every field that says who, when or where holds a given word.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
SLIDE_CLASS, JPEG_BASELINE = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.1.2.4.50"
ROOT = "1.2.826.0.1.3680043.10.1"
LONG = ("OB", "OW", "SQ", "UN", "UT")
NUMBERS = {"US": "<H", "UL": "<I", "FL": "<f"}
Value = Any
Fields = Mapping[tuple[int, int], tuple[str, Value]]


@dataclass(frozen=True)
class DicomSlide:
    """A series: side of a tile, pixel size, factor from level to level, how many levels, and what its private fields say."""

    tile_px: int = 64
    pixel_size_mm: tuple[float, float] = (0.0005, 0.0005)
    factor: int = 2
    levels: int = 3
    word: str = "anybody"
    series: int = 1


def write_dicom_slide(folder: Path, pixels: Pixels, slide: DicomSlide | None = None) -> list[Path]:
    """Write the series of level-0 ``pixels`` (y, x, 3) into ``folder``; its files, finest level first, then label, overview."""
    slide = slide or DicomSlide()
    folder.mkdir(parents=True, exist_ok=True)
    written, level = [], pixels
    for number in range(slide.levels):
        kind = ("RESAMPLED" if number else "NONE", "VOLUME")
        written.append(_write(folder, slide, number, kind, level, slide.tile_px))
        level = _smaller(level, slide.factor)
    for number, name, grey in ((slide.levels, "LABEL", 90), (slide.levels + 1, "OVERVIEW", 160)):
        # associated images are one frame
        written.append(_write(folder, slide, number, ("NONE", name), np.full((48, 48, 3), grey, np.uint8), 48))
    return written


def coded_frames(pixels: Pixels, tile_px: int) -> list[bytes]:
    """The tiles of an image row by row as JPEG, the last ones filled up with white."""
    import imagecodecs

    down, across = (-(-n // tile_px) for n in pixels.shape[:2])
    whole = np.full((down * tile_px, across * tile_px, 3), 255, np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    rows = whole.reshape(down, tile_px, across, tile_px, 3).swapaxes(1, 2)
    return [bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(t), level=95, subsampling="422")) for r in rows for t in r]


def _smaller(pixels: Pixels, factor: int) -> Pixels:
    """Area averages; what is left over at the end is left out."""
    height, width = (n // factor * factor for n in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return np.asarray(np.rint(blocks.mean(axis=(1, 3))), np.uint8)


def _write(folder: Path, slide: DicomSlide, number: int, kind: tuple[str, str], pixels: Pixels, tile_px: int) -> Path:
    frames, uid = coded_frames(pixels, tile_px), f"{ROOT}.{slide.series}.3.{number + 1}"
    meta = {
        (0x0002, 0x0001): ("OB", b"\0\1"),
        (0x0002, 0x0002): ("UI", SLIDE_CLASS),
        (0x0002, 0x0003): ("UI", uid),
        (0x0002, 0x0010): ("UI", JPEG_BASELINE),
        (0x0002, 0x0012): ("UI", f"{ROOT}.9"),
    }
    head = _coded(meta)
    spacing = [n * slide.factor ** (number if kind[1] == "VOLUME" else 3) for n in slide.pixel_size_mm]
    fields = {**_who(slide), **_what(slide, kind, uid, number), **_size(pixels, tile_px, len(frames), spacing)}
    path = folder / f"{slide.series}-{number}.dcm"
    start = b"\0" * 128 + b"DICM" + _element((0x0002, 0x0000), "UL", len(head)) + head
    path.write_bytes(start + _coded(fields) + _encapsulated(frames))
    return path


def _who(slide: DicomSlide) -> dict[tuple[int, int], tuple[str, Value]]:
    """Fields about people, places and times."""
    word = slide.word
    return {
        (0x0008, 0x0020): ("DA", "20200102"),  # StudyDate
        (0x0008, 0x0023): ("DA", "20200103"),  # ContentDate
        (0x0008, 0x002A): ("DT", "20200104101112"),  # AcquisitionDateTime
        (0x0008, 0x0030): ("TM", "101112"),  # StudyTime
        (0x0008, 0x0033): ("TM", "101113"),  # ContentTime
        (0x0008, 0x0050): ("SH", f"{word}A"),  # AccessionNumber
        (0x0008, 0x0080): ("LO", f"{word}-hospital"),  # InstitutionName
        (0x0008, 0x0090): ("PN", f"{word}^referring"),  # ReferringPhysicianName
        (0x0008, 0x1070): ("PN", f"{word}^operator"),  # OperatorsName
        (0x0010, 0x0010): ("PN", f"{word}^patient"),  # PatientName
        (0x0010, 0x0020): ("LO", f"{word}-mrn"),  # PatientID
        (0x0010, 0x0030): ("DA", "19440105"),  # PatientBirthDate
        (0x0010, 0x0040): ("CS", "O"),  # PatientSex
        (0x0018, 0x1000): ("LO", f"{word}-serial"),  # DeviceSerialNumber
        (0x0020, 0x0010): ("SH", f"{word}-study"),  # StudyID
        (0x0040, 0x0512): ("LO", f"{word}-container"),  # ContainerIdentifier
        (0x0040, 0x0560): ("SQ", [{(0x0040, 0x0551): ("LO", f"{word}-specimen"), (0x0040, 0x0554): ("UI", f"{ROOT}.8")}]),
    }


def _what(slide: DicomSlide, kind: tuple[str, str], uid: str, number: int) -> dict[tuple[int, int], tuple[str, Value]]:
    """What the file is, and which others it belongs to."""
    flavour, name = kind
    origin = "DERIVED" if flavour == "RESAMPLED" else "ORIGINAL"
    return {
        (0x0008, 0x0008): ("CS", f"{origin}\\PRIMARY\\{name}\\{flavour}"),
        (0x0008, 0x0016): ("UI", SLIDE_CLASS),
        (0x0008, 0x0018): ("UI", uid),
        (0x0008, 0x0060): ("CS", "SM"),
        (0x0008, 0x0070): ("LO", "histomri"),
        (0x0020, 0x000D): ("UI", f"{ROOT}.{slide.series}.1"),
        (0x0020, 0x000E): ("UI", f"{ROOT}.{slide.series}.2"),
        (0x0020, 0x0011): ("IS", str(slide.series)),
        (0x0020, 0x0013): ("IS", str(number + 1)),
        (0x0020, 0x0052): ("UI", f"{ROOT}.{slide.series}.4"),
        (0x0020, 0x9311): ("CS", "TILED_FULL"),
        (0x0028, 0x0301): ("CS", "YES" if name == "LABEL" else "NO"),
        (0x0028, 0x2110): ("CS", "01"),
        (0x0048, 0x0010): ("CS", "YES" if name == "LABEL" else "NO"),
    }


def _size(pixels: Pixels, tile_px: int, frames: int, spacing_mm: Sequence[float]) -> dict[tuple[int, int], tuple[str, Value]]:
    """The pixels' layout, number and size."""
    height, width = pixels.shape[:2]
    measures = {(0x0018, 0x0050): ("DS", "0.001"), (0x0028, 0x0030): ("DS", "\\".join(f"{n:.8g}" for n in spacing_mm))}
    origin = {(0x0040, 0x072A): ("DS", "0"), (0x0040, 0x073A): ("DS", "0")}
    return {
        (0x0028, 0x0002): ("US", 3),
        (0x0028, 0x0004): ("CS", "YBR_FULL_422"),
        (0x0028, 0x0006): ("US", 0),
        (0x0028, 0x0008): ("IS", str(frames)),
        (0x0028, 0x0010): ("US", tile_px),
        (0x0028, 0x0011): ("US", tile_px),
        (0x0028, 0x0100): ("US", 8),
        (0x0028, 0x0101): ("US", 8),
        (0x0028, 0x0102): ("US", 7),
        (0x0028, 0x0103): ("US", 0),
        (0x0048, 0x0001): ("FL", width * spacing_mm[1]),
        (0x0048, 0x0002): ("FL", height * spacing_mm[0]),
        (0x0048, 0x0003): ("FL", 0.001),
        (0x0048, 0x0006): ("UL", width),
        (0x0048, 0x0007): ("UL", height),
        (0x0048, 0x0008): ("SQ", [origin]),
        (0x0048, 0x0102): ("DS", "0\\-1\\0\\-1\\0\\0"),
        (0x0048, 0x0105): ("SQ", [{(0x0048, 0x0106): ("SH", "1"), (0x0048, 0x0112): ("DS", "20")}]),
        (0x0048, 0x0302): ("UL", 1),
        (0x0048, 0x0303): ("UL", 1),
        (0x5200, 0x9229): ("SQ", [{(0x0028, 0x9110): ("SQ", [measures])}]),
    }


def _coded(fields: Fields) -> bytes:
    """A data set: its elements in the order of their tags."""
    return b"".join(_element(tag, *fields[tag]) for tag in sorted(fields))


def _element(tag: tuple[int, int], vr: str, value: Value) -> bytes:
    """An element in explicit VR little endian, of even length."""
    if vr == "SQ":
        items = [_coded(item) for item in value]
        data = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    elif vr in NUMBERS:
        data = struct.pack(NUMBERS[vr], value)
    else:
        data = value.encode() if isinstance(value, str) else value
        data += (b"\0" if vr in ("UI", "OB") else b" ") * (len(data) % 2)
    length = struct.pack("<HI", 0, len(data)) if vr in LONG else struct.pack("<H", len(data))
    return struct.pack("<HH", *tag) + vr.encode() + length + data


def _encapsulated(frames: Sequence[bytes]) -> bytes:
    """Pixel data of undefined length: a table of where each frame begins, the frames, the end."""
    padded = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    starts = np.cumsum([0, *(len(frame) + 8 for frame in padded[:-1])]).astype("<u4").tobytes()
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in (starts, *padded))
    pixel_data = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return pixel_data + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
