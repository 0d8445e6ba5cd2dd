"""Slide files behind one small interface: what a file says about itself, and the pixels of its levels by region.

``probe`` reads metadata only, in milliseconds; ``open_slide`` gives the pixels. Both raise ``InputError`` in words for
the user. Label, macro and thumbnail images are listed as dropped and only read by whoever asks for one by its name.

Other packages add readers by an entry point of the group ``histomri.slide_readers``: a function of (path, channel) that returns
an open ``Slide``, or None for a file that is not its own. They are asked before the readers here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from histomri.core import InputError
from histomri.io.slides import ngff, plain, tiff, vendor
from histomri.io.slides.base import READABLE, Pixels, Slide, SlideInfo, problem
from histomri.io.slides.focus import chosen_plane

__all__ = ["MAX_PLAIN_PX", "Pixels", "Slide", "SlideInfo", "open_slide", "probe"]

MAX_PLAIN_PX = 1 << 28
READERS = "histomri.slide_readers"
# SVS and tiled TIFF say the same through tifffile as through openslide, four times faster
DIRECT_VENDORS = ("aperio", "generic-tiff", "generic-tiled-tiff")


def head_of(path: Path) -> bytes:
    """The first bytes of a file. Raises ``InputError`` where there is none, nothing in it, or no permission."""
    if not path.exists():
        raise problem(path, "there is no such file", "correct the path in the column 'file', or copy the file there")
    if path.is_dir() and not ngff.is_store(path):
        raise problem(path, "is a folder, not a slide file", "name the file inside it")
    if path.is_dir():
        return b""
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError as error:
        raise problem(path, f"cannot be read ({error.strerror})", "check the permissions and the disk") from error
    if not head:
        raise problem(path, "is empty (0 bytes)", "copy it again from the scanner")
    return head


def unsupported(path: Path, head: bytes, reason: str) -> InputError:
    """The error for a file that no reader takes, in words by what it looks like."""
    if path.suffix.lower() in (".dcm", ".dicom") or head[128:132] == b"DICM":
        what = f"is a DICOM file, but not a whole-slide image that can be read ({reason})"
        return problem(path, what, "export the slide from the scanner as a WSI DICOM series, SVS or OME-TIFF")
    known = path.suffix.lower() in (".svs", ".ndpi", ".tif", ".tiff", ".qptiff", ".scn", ".mrxs", ".png", ".jpg", ".jpeg")
    if known:
        what = f"is truncated or corrupt: its content is not that of a {path.suffix} file ({reason})"
        return problem(path, what, "copy it again from the scanner")
    return problem(path, f"is not a slide file that can be read ({reason})", f"convert it to {READABLE}")


def open_slide(
    path: str | Path, channel: str | None = None, max_plain_px: int = MAX_PLAIN_PX, focal_plane: str = "first"
) -> Slide:
    """Open a slide file; ``channel`` (name or number) selects one channel of it.

    PNG and JPEG are decoded whole and refused above ``max_plain_px`` pixels. Of several focal planes, one is used: ``first``,
    ``middle``, ``sharpest``, or its number from 0. Raises ``InputError``.
    """
    path = Path(path)
    head = head_of(path)
    if (foreign := _from_plugins(path, channel)) is not None:
        return foreign
    if plain.format_of(head):
        return plain.PlainSlide(path, channel, max_plain_px)
    slide = _open_pyramid(path, head, channel, 0)
    if slide.info.planes == 1 or focal_plane in ("first", "0"):
        return slide
    with slide:
        plane = chosen_plane(focal_plane, slide.info.planes, lambda k: _open_pyramid(path, head, channel, k))
    return _open_pyramid(path, head, channel, plane)


@cache
def foreign_readers() -> tuple[EntryPoint, ...]:
    """The readers of other packages; to look for them takes longer than to open a slide, and a study has a thousand."""
    return tuple(entry_points(group=READERS))


def _from_plugins(path: Path, channel: str | None) -> Slide | None:
    """The slide as a reader of another package opens it; None where none knows the file. Raises ``InputError``."""
    for entry in foreign_readers():
        try:
            slide: Slide | None = entry.load()(path, channel)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            remedy = f"update or remove the package that brings the reader {entry.name!r}"
            raise problem(path, f"the reader {entry.name!r} failed ({type(error).__name__}: {error})", remedy) from error
        if slide is not None:
            return slide
    return None


def _open_pyramid(path: Path, head: bytes, channel: str | None, plane: int) -> Slide:
    import openslide
    import tifffile

    try:
        if path.is_dir():
            return ngff.ZarrSlide(path, channel, plane)
        maker = vendor.detect_vendor(path)
        if tiff.is_tiff(head) and maker in (None, *DIRECT_VENDORS):
            return tiff.TiffSlide(path, channel, plane)
        if maker is None:
            raise unsupported(path, head, "no reader knows it")
        return vendor.VendorSlide(path, channel)
    except InputError:
        raise
    except (openslide.OpenSlideError, tifffile.TiffFileError, OSError) as error:
        raise unsupported(path, head, str(error).removeprefix(f"Reading {path}: ")) from error
    except MemoryError:
        raise
    except Exception as error:
        # tifffile and openslide trip in many ways over the structure of a damaged file
        raise unsupported(path, head, f"{type(error).__name__}: {error}") from error


def probe(path: str | Path) -> SlideInfo:
    """What a slide file says about itself, from its metadata. Raises ``InputError``, also for a file that was cut off."""
    path = Path(path)
    head = head_of(path)
    kind = plain.format_of(head)
    if kind:
        with plain.open_image(path) as image:
            info = plain.info_of(image, path)
        if plain.is_truncated(path, kind):
            raise problem(path, f"is truncated: its end is missing after {path.stat().st_size} bytes", "copy it again")
        return info
    with _from_plugins(path, None) or _open_pyramid(path, head, None, 0) as slide:
        missing = slide.missing_bytes() if isinstance(slide, tiff.TiffSlide) else 0
        if missing:
            what = f"is truncated: {missing} of {slide.tiles} tiles lie beyond its end"
            raise problem(path, what, "copy it again from the scanner")
        if slide.info.planes == 1:
            return slide.info
        note = f"{slide.info.planes} focal planes, one is used (ingest.focal_plane)"
        return replace(slide.info, notes=(note, *(n for n in slide.info.notes if "focal planes" not in n)))
