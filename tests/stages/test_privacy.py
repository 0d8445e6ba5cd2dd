"""What a slide file says about people, places and times does not leave it, unless the config asks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import PngImagePlugin

from histomri.core import Section
from histomri.io.private import category_of, private_fields
from histomri.io.sections import SectionManifest, read_manifest
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.testing.dicom_slide import DicomSlide, write_dicom_slide

# every planted value holds this word, in no matter which field
WORD = "xqzsecret"
APERIO = (
    "Aperio Image Library v11\n256x256 (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5|User = {0}-user|Date = {0} 12/29/09"
    "|Time = 09:59:15 {0}|ScanScope ID = {0}-scope|Filename = {0}-file|ImageID = {0}-id|Title = {0}-title"
    "|Barcode = {0}-bar|Patient Name = {0}-name"
)
OME = """<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Experimenter ID="Experimenter:0" FirstName="{0}-first" LastName="{0}-last" Email="{0}@x.org"/>
<Instrument ID="Instrument:0"><Microscope SerialNumber="{0}-serial"/></Instrument>
<Image ID="Image:0" Name="plain"><AcquisitionDate>2020-01-01T{0}</AcquisitionDate>
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="256" SizeY="256" SizeC="3" SizeZ="1" SizeT="1"
 PhysicalSizeX="0.5" PhysicalSizeY="0.5" Interleaved="true">
 <Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels>
<StructuredAnnotations/></Image></OME>"""
QPTIFF = """<?xml version="1.0" encoding="utf-16"?><PerkinElmer-QPI-ImageDescription><DescriptionVersion>2</DescriptionVersion>
<OperatorName>{0}-operator</OperatorName><ComputerName>{0}-pc</ComputerName><SlideID>{0}-slide</SlideID><Barcode>{0}-bar</Barcode>
<StudyName>x</StudyName><ImageType>FullResolution</ImageType></PerkinElmer-QPI-ImageDescription>"""
TAGS = [(315, "s", 0, f"{WORD}-artist", True), (316, "s", 0, f"{WORD}-host", True), (269, "s", 0, f"/home/{WORD}/a.svs", True)]


def pixels(seed: int = 0) -> Any:
    """A blot of H&E-like tissue on glass, (256, 256, 3)."""
    rng = np.random.default_rng(seed)
    out = rng.normal(240, 2, (256, 256, 3))
    out[60:200, 50:210] = rng.normal((170, 100, 160), 15, (140, 160, 3))
    return np.clip(out, 0, 255).astype(np.uint8)


def tiff(path: Path, description: str, **options: Any) -> Path:
    kind: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "metadata": None, "datetime": "2009:12:29 09:59:15"}
    kind |= {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "extratags": TAGS}
    tifffile.imwrite(path, pixels(), description=description.format(WORD).encode(), **(kind | options))
    return path


def svs(path: Path) -> Path:
    """Aperio's order of pages: the slide, a thumbnail, the label, the macro."""
    kind: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            pixels(), tile=(64, 64), description=APERIO.format(WORD), extratags=TAGS, datetime="2009:12:29 09:59:15", **kind
        )
        writer.write(pixels()[::4, ::4], description="Aperio Image Library v11\n256x256 -> 64x64", **kind)
        for number, name in ((1, "label"), (9, "macro")):
            picture = np.full((40, 60, 3), 90 + number, np.uint8)
            writer.write(picture, description=f"Aperio Image Library v11\n{name} 60x40", subfiletype=number, **kind)
    return path


def png(path: Path) -> Path:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", f"{WORD}-author")
    text.add_itxt("Comment", f"{WORD}-comment")
    Pillow.fromarray(pixels()).save(path, pnginfo=text)
    return path


def jpeg(path: Path) -> Path:
    exif = Pillow.Exif()
    exif[315], exif[306], exif[0x9C9D] = f"{WORD}-artist", f"2001 {WORD}", f"{WORD}-xp".encode()
    Pillow.fromarray(pixels()).save(path, exif=exif, comment=f"{WORD}-comment".encode(), quality=95)
    return path


def dicom(path: Path) -> Path:
    """A DICOM file that is no slide, with a patient's name in explicit VR little endian."""
    name = f"{WORD}^name ".encode()
    element = b"\x10\x00\x10\x00PN" + len(name).to_bytes(2, "little") + name
    path.write_bytes(b"\0" * 128 + b"DICM" + element)
    return path


def ndpi(path: Path) -> Path:
    """Hamamatsu's tags on a TIFF: a reference that holds the slide's barcode, and a list of properties."""
    properties = f"Created=2011/05/23 {WORD}\r\nNDP.S/N={WORD}\r\n"
    tags = [
        (65420, "I", 1, 1, True),
        (65421, "f", 1, 20.0, True),
        (65427, "s", 0, f"{WORD}-ref", True),
        (65449, "s", 0, properties, True),
    ]
    return tiff(path, "plain", extratags=[*TAGS, (271, "s", 0, "Hamamatsu", True), *tags])


MAKERS: dict[str, Callable[[Path], Path]] = {
    "a.svs": svs,
    "a.ome.tif": lambda p: tiff(p, OME),
    "a.qptiff": lambda p: tiff(p, QPTIFF, software="PerkinElmer-QPI"),
    "a.tif": lambda p: tiff(p, "note by {0}"),
    "a.ndpi": ndpi,
    "a.png": png,
    "a.jpg": jpeg,
    "a.dcm": dicom,
}
# at least one field of each file that has to be listed
LISTED = {
    "a.svs": {
        "aperio.User",
        "aperio.Date",
        "aperio.Time",
        "aperio.ScanScope ID",
        "aperio.Barcode",
        "aperio.Patient Name",
        "tiff.Artist",
    },
    "a.ome.tif": {"ome.Experimenter.FirstName", "ome.Experimenter.Email", "ome.AcquisitionDate", "ome.Microscope.SerialNumber"},
    "a.qptiff": {"qptiff.OperatorName", "qptiff.ComputerName", "qptiff.SlideID", "qptiff.Barcode", "tiff.DateTime"},
    "a.tif": {"tiff.Artist", "tiff.HostComputer", "tiff.DocumentName", "tiff.DateTime", "tiff.ImageDescription (free text)"},
    "a.ndpi": set(),
    "a.png": {"picture.Author", "picture.Comment"},
    "a.jpg": {"exif.Artist", "exif.DateTime", "picture.comment"},
    "a.dcm": set(),
}
# openslide takes neither for one of its own
UNREADABLE = ("a.ndpi", "a.dcm")


def ingest(folder: Path, file: Path, keep: list[str] | None = None, **row: Any) -> SectionManifest:
    settings = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64, keep=keep or [])
    manifest = folder / "ingest" / "a" / "manifest.json"
    section = Section("a", file, 0.0, stain="H&E", **row)
    ingest_section(section, folder / "sections" / "a.ome.zarr", manifest, settings, 0.0005)
    return read_manifest(manifest)


def leaks(folder: Path, word: str = WORD) -> list[str]:
    """Files below a folder that hold the word, in any case, in any of the encodings that text has; gzip is looked into."""
    wanted = [word.lower().encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        data = (gzip.decompress(data) if path.suffix == ".gz" else data).lower()
        found += [str(path.relative_to(folder))] if any(w in data for w in wanted) else []
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_no_byte_of_the_output_tells_and_what_was_left_is_listed(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = MAKERS[name](tmp_path / name)
    assert leaks(tmp_path) == [name], "the file itself must hold what is looked for"
    found = ingest(tmp_path / "out", file)
    assert leaks(tmp_path / "out") == []
    assert WORD not in "".join(capfd.readouterr())
    assert found.status == ("unreadable" if name in UNREADABLE else "ok")
    missing = LISTED[name] - set(found.dropped_metadata)
    assert not missing, f"not listed: {missing}; listed: {found.dropped_metadata}"
    assert not (tmp_path / "out" / "ingest" / "a" / "kept").exists() and found.kept == ()


def test_a_dicom_series_tells_nothing_of_any_of_its_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = write_dicom_slide(tmp_path / "in", pixels(), DicomSlide(word=WORD, levels=2))
    assert len(leaks(tmp_path / "in")) == 4, "each file must hold what is looked for"
    found = ingest(tmp_path / "out", files[1])
    assert found.status == "ok" and {"label", "macro"} <= set(found.dropped)
    assert leaks(tmp_path / "out") == [] and WORD not in "".join(capfd.readouterr())
    for word in ("20200102", "20200104101112", "19440105", "1.2.826.0.1"):
        assert leaks(tmp_path / "in", word) and not leaks(tmp_path / "out", word)
    names = "PatientName PatientID PatientBirthDate AccessionNumber StudyDate AcquisitionDateTime OperatorsName StudyID"
    names += " ReferringPhysicianName InstitutionName DeviceSerialNumber ContainerIdentifier StudyInstanceUID SOPInstanceUID"
    assert {f"dicom.{name}" for name in names.split()} <= set(found.dropped_metadata)
    assert "dicom.SpecimenDescriptionSequence[0].SpecimenIdentifier" in found.dropped_metadata
    harmless = ("OpticalPath", "Rows", "PixelSpacing", "SOPClassUID", "SpecimenLabel")
    assert not [name for name in found.dropped_metadata if any(word in name for word in harmless)]
    kept = ingest(tmp_path / "label", files[0], keep=["label"])
    with Pillow.open(tmp_path / "label" / "ingest" / "a" / "kept" / "label.png") as image:
        assert int(np.median(np.asarray(image))) == 90 and "label" in kept.kept
    assert leaks(tmp_path / "label") == []


def test_a_real_ndpi_with_words_in_its_dates_tells_nothing(tmp_path: Path, shared_data: Path) -> None:
    real = (shared_data / "wsi" / "test3-DAPI-2-(387).ndpi").read_bytes()
    planted = real.replace(b"2017:02:07 13:06:43", WORD.encode() + b":07 13:06:").replace(b"2011/05/23", WORD.encode() + b"!")
    assert planted.count(WORD.encode()) > 1
    file = tmp_path / "a.ndpi"
    file.write_bytes(planted)
    found = ingest(tmp_path / "out", file, keep=["macro"], region=(1500, 1500, 300, 300))
    assert found.status != "unreadable" and {"tiff.DateTime", "hamamatsu.Created", "hamamatsu.NDP.S/N"} <= set(
        found.dropped_metadata
    )
    assert leaks(tmp_path / "out") == [] and (tmp_path / "out" / "ingest" / "a" / "kept" / "macro.png").is_file()


def test_what_is_asked_for_is_kept_and_nothing_else(tmp_path: Path) -> None:
    found = ingest(tmp_path / "out", svs(tmp_path / "a.svs"), keep=["macro", "scan_date"])
    folder = tmp_path / "out" / "ingest" / "a" / "kept"
    assert sorted(p.name for p in folder.iterdir()) == ["macro.png", "metadata.json"]
    kept = json.loads((folder / "metadata.json").read_text())
    assert set(kept) == {"aperio.Date", "aperio.Time", "tiff.DateTime"} and WORD in kept["aperio.Date"]
    with Pillow.open(folder / "macro.png") as image:
        assert np.asarray(image).shape == (40, 60, 3) and int(np.median(np.asarray(image))) == 99
    assert "label" in found.dropped and "macro" not in found.dropped
    assert set(found.kept) == {"macro", *kept} and "aperio.User" in found.dropped_metadata
    assert leaks(tmp_path / "out") == ["ingest/a/kept/metadata.json"], "the public store has none of it"


def test_an_image_of_more_pixels_than_the_config_decodes_whole_is_not_kept(tmp_path: Path) -> None:
    section = Section("a", svs(tmp_path / "a.svs"), 0.0, stain="H&E")
    manifest = tmp_path / "ingest" / "a" / "manifest.json"
    for most_px, kept in ((40 * 60, ("macro",)), (40 * 60 * 3 // 4 - 1, ())):
        settings = IngestSettings(chunk_px=64, shard_px=128, smallest_level_px=64, keep=["macro"], max_plain_px=most_px)
        found = ingest_section(section, tmp_path / "a.ome.zarr", manifest, settings, 0.0005)
        assert found.kept == kept and ("macro" in found.dropped) == (not kept)


def test_what_was_kept_goes_when_the_config_asks_no_more(tmp_path: Path) -> None:
    file = svs(tmp_path / "a.svs")
    ingest(tmp_path / "out", file, keep=["label", "operator", "patient"])
    assert (tmp_path / "out" / "ingest" / "a" / "kept" / "label.png").is_file() and leaks(tmp_path / "out")
    ingest(tmp_path / "out", file)
    assert not (tmp_path / "out" / "ingest" / "a" / "kept").exists() and leaks(tmp_path / "out") == []


def test_an_error_of_the_system_does_not_carry_the_path_into_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = svs(tmp_path / f"{WORD}.svs")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("histomri.io.slides.open_slide", refuse)
    found = ingest(tmp_path / "out", file)
    assert found.status == "unreadable" and found.flags == ("could not be read: Permission denied",)
    assert leaks(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("dicom.PatientName", "patient"),
        ("dicom.PatientBirthDate", "patient"),
        ("dicom.OperatorsName", "operator"),
        ("dicom.AccessionNumber", "patient"),
        ("dicom.ContainerIdentifier", "slide_id"),
        ("dicom.StudyDate", "scan_date"),
        ("hamamatsu.Created", "scan_date"),
        ("mirax.GENERAL.SLIDE_CREATIONDATETIME", "scan_date"),
        ("mirax.GENERAL.SLIDE_NAME", "slide_id"),
        ("leica.creation-date", "scan_date"),
        ("leica.barcode", "slide_id"),
        ("philips.DICOM_DEVICE_SERIAL_NUMBER", "device"),
        ("ventana.Operator", "operator"),
        ("aperio.MPP", None),
        ("aperio.Exposure Time", None),
        ("openslide.level-count", None),
        ("hamamatsu.SourceLens", None),
        ("ome.Pixels.PhysicalSizeX", None),
    ],
)
def test_fields_are_known_by_their_names_whatever_their_maker(name: str, category: str | None) -> None:
    assert category_of(name) == category


def test_real_slides_list_what_they_say(shared_data: Path) -> None:
    names = {f.name for f in private_fields(shared_data / "wsi" / "CMU-1-Small-Region.svs")}
    assert {"aperio.User", "aperio.Date", "aperio.ScanScope ID", "aperio.Filename"} <= names
    names = {f.name for f in private_fields(shared_data / "wsi" / "small_vectra.qptiff")}
    assert {"qptiff.ComputerName", "qptiff.SlideID", "tiff.DateTime"} <= names
    assert private_fields(shared_data / "wsi" / "broken.svs") == []
