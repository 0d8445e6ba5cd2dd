"""What a slide file says about people, places and times: found by name, left behind, kept only where the config asks.

Nothing of a file's metadata is carried over but what :class:`histomri.io.slides.SlideInfo` names (size, pixel size,
channels, type).
This module lists what therefore stayed behind, and copies what ``ingest.keep`` names into a folder of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from histomri.core import InputError
from histomri.io.atomic import write_json
from histomri.io.publish import remove
from histomri.io.slides.base import MOST_ASSOCIATED_PX, problem

IMAGES = ("label", "macro", "thumbnail")
# tried in this order, so that what concerns the patient never passes for less
WORDS = {
    "patient": r"patient|birth|subject|accession|casenumber|caseid|studyid|diagnosis|donor|medicalrecord|\bmrn\b",
    "slide_id": r"barcode|slideid|slidename|slidelabel|imageid|sampleid|specimen|containeridentifier|uniqueid|instanceuid"
    r"|frameofreferenceuid",
    "operator": r"\buser|operator|experimenter|artist|author|creator|physician|username|firstname|lastname|email|copyright",
    "scan_date": r"date|\btime\b|timezone|created|updated|\btimestamp|gmtoffset",
    "device": r"scanscope|serial|s/n|hostcomputer|computername|hostname|instrument|device|station|institution|machine|gps",
    "file_path": r"filename|filepath|path|documentname|originalfile|directory|folder|\buri\b|\burl\b|hamamatsu\.reference",
    "description": r"comment|remark|\btitle|description|project|keywords|\bxmp\b|xpsubject",
}
CATEGORIES = {category: re.compile(words) for category, words in WORDS.items()}
# names that a pattern catches and that say nothing about anyone
HARMLESS = re.compile(
    r"exposuretime|^openslide\.|^tiff\.imagedescription$|descriptionversion|acquisitiontime$|focustime|updaterate"
    r"|opticalpath|specimenlabelinimage"
)
TIFF_TAGS = {
    269: "DocumentName", 285: "PageName", 306: "DateTime", 315: "Artist", 316: "HostComputer", 700: "XMP", 33432: "Copyright",
    33723: "IPTC", 34665: "ExifTag", 34853: "GPSTag", 36867: "DateTimeOriginal", 36868: "DateTimeDigitized", 37510: "UserComment",
    65427: "hamamatsu.Reference",
}  # fmt: skip
TAG_CATEGORY = {700: "description", 33723: "description", 34665: "description", 34853: "device", 285: "description"}


@dataclass(frozen=True)
class PrivateField:
    """A field of a file's metadata that may tell who, when or where: its name, one of :data:`CATEGORIES`, its value."""

    name: str
    category: str
    value: str


def category_of(name: str) -> str | None:
    """The category that a field's name belongs to, None for a harmless one.

    >>> category_of("aperio.ScanScope ID"), category_of("dicom.PatientName"), category_of("aperio.MPP")
    ('device', 'patient', None)
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    plain = re.sub(r"[\s_]", "", name.lower())
    if HARMLESS.search(plain):
        return None
    found = (key for key, pattern in CATEGORIES.items() if pattern.search(spaced) or pattern.search(plain))
    return next(found, None)


def private_fields(path: Path) -> list[PrivateField]:
    """The private fields of a slide file, by name, each once; reads metadata only.

    A part of the metadata that cannot be read is passed over: whatever it holds is left behind with the rest.
    """
    found: dict[str, PrivateField] = {}
    for reader in (_tiff_fields, _openslide_fields, _picture_fields):
        try:
            for name, value, category in reader(path):
                category = category or category_of(name)
                if category and value.strip():
                    found.setdefault(name, PrivateField(name, category, value.strip()))
        except MemoryError:
            raise
        except Exception:  # readers raise whatever they like on files that are not theirs, or damaged
            continue
    return sorted(found.values(), key=lambda f: f.name)


Entry = tuple[str, str, str | None]


def _tiff_fields(path: Path) -> Iterator[Entry]:
    """Tags of the first page of every series, and the fields of their descriptions."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        pages: list[Any] = [tiff.pages[0], *(s.keyframe for s in tiff.series)]
        for page in pages:
            for code, name in TIFF_TAGS.items():
                if code in page.tags:
                    yield f"tiff.{name}", str(page.tags[code].value), TAG_CATEGORY.get(code)
            yield from _described(str(getattr(page, "description", "")))


def _described(text: str) -> Iterator[Entry]:
    """The fields of an image description: XML (OME, QPTIFF), Aperio's ``key = value|``, lines ``key=value``, or free text."""
    start = text.lstrip("\ufeff \n")
    if start.startswith("<"):
        # a declared encoding is that of the file it was written to, not of this string
        yield from _xml_fields(ElementTree.fromstring(re.sub(r"^<\?xml[^>]*\?>", "", start)))
        return
    maker = "aperio" if "aperio" in start.lower() else "description"
    pairs = [part.split("=", 1) for part in re.split(r"[|\n;]", start) if "=" in part]
    for key, value in pairs:
        yield f"{maker}.{key.strip()}", value, None
    if start and not pairs and not start.startswith("{"):
        yield "tiff.ImageDescription (free text)", start, "description"


def _xml_fields(root: ElementTree.Element) -> Iterator[Entry]:
    """Every attribute and text of an XML tree, named by its element, the root's name first."""
    maker = "ome" if _tag(root) == "OME" else "qptiff" if "QPI" in root.tag else "xml"
    for element in root.iter():
        name = _tag(element)
        if element.text and element.text.strip():
            yield f"{maker}.{name}", element.text, None
        for key, value in element.attrib.items():
            yield f"{maker}.{name}.{key.rsplit('}', 1)[-1]}", value, None


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rsplit("}", 1)[-1]


def _openslide_fields(path: Path) -> Iterator[Entry]:
    """The vendor's properties (Aperio's, Hamamatsu's, Mirax', Leica's, Philips', DICOM's)."""
    import openslide

    with openslide.OpenSlide(str(path)) as slide:
        properties: Mapping[str, str] = slide.properties
        for name, value in properties.items():
            yield name, value, None
        comment = properties.get("openslide.comment", "")
        if comment and not comment.startswith(("Aperio", "<")):
            yield "openslide.comment", comment, "description"


def _picture_fields(path: Path) -> Iterator[Entry]:
    """Text chunks of a PNG, comments and EXIF of a JPEG."""
    from PIL import ExifTags
    from PIL import Image as Pillow

    with Pillow.open(path, formats=("PNG", "JPEG")) as image:
        for name, value in image.info.items():
            if isinstance(value, str | bytes) and name not in ("icc_profile", "exif", "transparency"):
                text = value.decode("latin-1") if isinstance(value, bytes) else value
                yield f"picture.{name}", text, category_of(str(name)) or "description"
        exif = image.getexif()
        for block in (exif, exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)):
            names = ExifTags.GPSTAGS if block is not exif and 1 in block and 0 in block else ExifTags.TAGS
            for code, value in block.items():
                yield f"exif.{names.get(code, code)}", str(value), None


def keep(
    path: Path, dropped: Sequence[str], wanted: Sequence[str], folder: Path, most_px: int = MOST_ASSOCIATED_PX
) -> tuple[list[str], list[PrivateField]]:
    """Copy what ``wanted`` names into ``folder``, which is emptied first and does not exist where nothing is kept.

    Images become ``<name>.png`` without any metadata, fields ``metadata.json`` ({name: value}). ``dropped`` are the file's
    associated images, copied up to ``most_px`` pixels. Returns the names of what was kept, and the private fields that were
    left behind.
    """
    remove(folder)
    fields = private_fields(path)
    kept_fields = [f for f in fields if f.category in wanted]
    images = [name for name in dropped if name in wanted and name in IMAGES and _copy_image(path, name, folder, most_px)]
    if kept_fields:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metadata.json", {f.name: f.value for f in kept_fields})
    return [*images, *(f.name for f in kept_fields)], [f for f in fields if f.category not in wanted]


def _copy_image(path: Path, name: str, folder: Path, most_px: int) -> bool:
    """Write an associated image as a PNG of its pixels alone; False, and a line in the log, where it cannot be read."""
    from PIL import Image as Pillow

    try:
        pixels = _associated(path, name, most_px)
    except InputError as error:
        print(f"not kept: {error}", flush=True)
        return False
    if pixels.dtype != "uint8" or pixels.ndim not in (2, 3):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels).save(folder / f"{name}.png")
    return True


def _associated(path: Path, name: str, most_px: int) -> Any:
    """Pixels of an associated image, (y, x, 3) or (y, x), by openslide or as a series of a TIFF.

    Raises ``InputError`` where neither reads it, or it would take more than ``most_px`` pixels do.
    """
    reasons = []
    for read in (_by_openslide, _by_tifffile):
        try:
            return read(path, name, most_px)
        except MemoryError:
            raise
        except Exception as error:  # damaged, or not its own; decoders raise whatever they like on bad bytes
            reasons.append(error)
    known = [error for error in reasons if isinstance(error, InputError)]
    raise (
        known[0] if known else problem(path, f"its image {name!r} cannot be read ({reasons[-1]})", "leave it out of ingest.keep")
    )


def _by_openslide(path: Path, name: str, most_px: int) -> Any:
    import openslide

    from histomri.io.slides.vendor import associated_pixels

    with openslide.OpenSlide(str(path)) as slide:
        return associated_pixels(slide, path, name, most_px)


def _by_tifffile(path: Path, name: str, most_px: int) -> Any:
    import tifffile

    from histomri.io.slides.tiff import associated_pixels

    with tifffile.TiffFile(path) as file:
        return associated_pixels(path, name, next(s for s in file.series if s.name.lower() == name), most_px)
