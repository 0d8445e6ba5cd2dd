"""Files that were damaged, or made to do harm: every reader refuses them in words, or reads what is sound of them."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel as nib
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image as Pillow

from histomri.core import InputError
from histomri.io import geojson, omezarr
from histomri.io.by_hand import read_rough
from histomri.io.config import read_config
from histomri.io.graph import read_graph
from histomri.io.nifti import read_geometry, read_nifti
from histomri.io.placements import read_placements
from histomri.io.private import keep
from histomri.io.sheets import read_sections
from histomri.io.slides import open_slide, probe, vendor
from histomri.io.slides.coded_size import coded_size
from histomri.io.tiff_chain import is_cut_off
from histomri.io.transform_files import fails_in_itk, read_transform, write_affine
from histomri.testing.fuzz import SHARES, cases_of, run_cases
from histomri.testing.fuzz_seeds import make_seeds, write_labelled_slide, write_lock
from histomri.transforms import Affine

ROOT = Path(__file__).resolve().parents[2]
CASES = 300


def test_a_few_hundred_spoiled_files_end_in_words_or_soundly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_seeds(tmp_path / "seeds")
    # HDF5 files take half a second each: `make test-faults` reads them
    counts = {name: count for name, count in cases_of(CASES).items() if name != "hdf5"}
    tallies = run_cases(counts, tmp_path / "seeds", tmp_path / "work").values()
    with capsys.disabled():
        print(f" {sum(sum(t.counts.values()) for t in tallies)} spoiled files ", end="")
    assert [f"{t.reader} {case}: {said}" for t in tallies for case, said in t.failures.items()] == []
    assert set(SHARES) <= {*counts, "hdf5"}


BAD_READER = """
import os, subprocess
from pathlib import Path
from histomri.core.errors import HistomriError
def out_of_memory(path):
    try:
        raise MemoryError
    except MemoryError:
        raise HistomriError("the file is damaged") from None
def caught(path):
    try:
        Path(path.parent, "../../x").write_text("x")
    except BaseException:
        pass
def by_link(path):
    (path.parent / "out").mkdir(exist_ok=True)
    (path.parent / "out" / "link").symlink_to(path.parents[2] / "canary")
    (path.parent / "out" / "link" / "file").unlink()
def allowed(path):
    for name in ("out", "kept"):
        (path.parent / name).mkdir(exist_ok=True)
        (path.parent / name / "a.txt").write_text("x")
WAYS = [
    lambda path: os.kill(os.getpid(), 11),
    lambda path: sum(iter(lambda: 1, 0)),
    lambda path: 1 / 0,
    lambda path: bytearray(200 << 20),
    out_of_memory,
    lambda path: Path("../../../x").write_text("x"),
    lambda path: Path("/etc/histomri-fuzz").mkdir(),
    caught,
    by_link,
    lambda path: os.rename(path, path.parent / "out"),
    lambda path: subprocess.run(["sh", "-c", "echo x > ../canary/file"], check=True),
    lambda path: subprocess.run(["sh", "-c", "echo x > \\"$0\\"", str(path)], check=True),
    allowed,
]
def bad(path):
    (path.parent / "out").mkdir(exist_ok=True)
    count = path.parent / "out" / "count"
    n = int(count.read_text()) if count.exists() else 0
    count.write_text(str(n + 1))
    WAYS[n](path)
import histomri.testing.fuzz as fuzz
fuzz.READERS["points"] = (bad,)
fuzz.CASE_S, fuzz.CASE_MB = 1, 100
"""


def test_the_fuzzer_sees_what_it_is_there_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that crashes, hangs, raises, eats memory or writes elsewhere is found, and the cases behind it still run."""
    (tmp_path / "sitecustomize.py").write_text(BAD_READER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'src'}")
    make_seeds(tmp_path / "seeds")
    tally = run_cases({"points": 13}, tmp_path / "seeds", tmp_path / "work")["points"]
    expected = [
        "crash, status -11",
        "longer than 1",
        "ZeroDivisionError in sitecustomize.py",
        "took 200 MB",
        "out of memory,",
        "wrote outside: open",
        "wrote outside: os.mkdir",
        "wrote outside: open",
        "wrote outside: os.remove",
        "wrote outside: os.rename",
        "touched ../../canary/file",
        "touched case.",
    ]
    assert [said[: len(f"FAILED {words}")] for said, words in zip(tally.failures.values(), expected, strict=True)] == [
        f"FAILED {words}" for words in expected
    ]
    assert tally.counts == {"failed": 12, "sound": 1}
    assert not (tmp_path / "x").exists() and not (tmp_path / "work" / "x").exists()


# ---------------------------------------------------------------- slides


def tiff(path: Path, **options: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    tifffile.imwrite(path, pixels, **{"tile": (32, 32), "photometric": "rgb", **options})
    return path


def set_tag(path: Path, code: int, value: int) -> None:
    """Overwrite the value of a tag of the first page in place."""
    with tifffile.TiffFile(path) as file:
        tag: Any = file.pages[0].tags[code]  # type: ignore[union-attr]
        at, kind = tag.valueoffset, {3: "<H", 4: "<I"}[int(tag.dtype)]
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(struct.pack(kind, value))


@pytest.mark.parametrize(("tag", "value"), [(256, 60000), (322, 0), (323, 0), (256, 0), (277, 0), (322, 16)])
def test_a_tiff_whose_tiles_do_not_fill_its_size_is_refused_at_once(tmp_path: Path, tag: int, value: int) -> None:
    file = tiff(tmp_path / "a.tif")
    set_tag(file, tag, value)
    for read in (probe, open_slide):
        with pytest.raises(InputError, match=r"truncated or corrupt"):
            read(file)


def test_a_damaged_level_does_not_cost_the_slide(tmp_path: Path) -> None:
    pixels = np.zeros((200, 200, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, tile=(32, 32), photometric="rgb", subifds=1)
        writer.write(pixels[::2, ::2], tile=(32, 32), photometric="rgb", subfiletype=1)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.series[0].levels[1].keyframe.tags[322].valueoffset
    with (tmp_path / "a.tif").open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\0\0")
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.info.levels == ((200, 200),) and slide.read_region(0, 0, 9, 9).shape == (9, 9, 3)


@pytest.mark.parametrize(
    ("codec", "encode"),
    [
        ("png", imagecodecs.png_encode),
        ("webp", imagecodecs.webp_encode),
        ("jpeg2000", imagecodecs.jpeg2k_encode),
        ("jpegxl", imagecodecs.jpegxl_encode),
        ("jpegxr", imagecodecs.jpegxr_encode),
        ("lerc", imagecodecs.lerc_encode),
        ("jpeg", imagecodecs.jpeg8_encode),
    ],
)
def test_a_tile_that_unfolds_into_a_huge_picture_is_a_bad_tile(
    tmp_path: Path, codec: str, encode: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = bytes(encode(np.zeros((500, 600, 3), np.uint8)))
    options: dict[str, Any] = {"tile": (48, 48), "photometric": "rgb", "compression": codec}
    tifffile.imwrite(tmp_path / "a.tif", iter([bomb] * 6), shape=(70, 90, 3), dtype=np.uint8, **options)
    assert coded_size(bomb) == (500, 600)
    decoder = f"{'jpeg2k' if codec == 'jpeg2000' else codec}_decode"
    monkeypatch.setattr(imagecodecs, decoder, lambda *_, **__: pytest.exit("a bomb was decoded"))
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.read_region(0, 0, 30, 30) == 255).all() and slide.bad_tiles == 1


@pytest.mark.parametrize("shape", [(48, 48), (31, 17), (256, 128), (3000, 10), (60, 80)])
def test_the_size_that_a_coded_tile_claims_is_its_own(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    coded = [
        imagecodecs.png_encode(pixels),
        imagecodecs.jpeg8_encode(pixels),
        imagecodecs.jpeg8_encode(pixels, optimize=True, subsampling="420"),
        imagecodecs.ljpeg_encode(pixels[..., 0]),
        imagecodecs.jpegls_encode(np.zeros((*shape, 3), np.uint8)),
        imagecodecs.webp_encode(pixels, lossless=True),
        imagecodecs.webp_encode(pixels, level=50, lossless=False),
        imagecodecs.jpeg2k_encode(pixels, codecformat="j2k"),
        imagecodecs.jpeg2k_encode(pixels, codecformat="jp2"),
        imagecodecs.jpegxl_encode(pixels),
        imagecodecs.jpegxl_encode(pixels, usecontainer=True),
        imagecodecs.jpegxr_encode(pixels),
        imagecodecs.lerc_encode(pixels),
    ]
    assert [coded_size(bytes(data)) for data in coded] == [shape] * len(coded)
    assert [coded_size(bytes(data)[:6]) for data in coded] == [None] * len(coded)
    assert coded_size(b"") is None


def test_a_png_that_claims_gigapixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Pillow.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=r"100000 x 100000 pixels; PNG and JPEG are decoded whole"):
        open_slide(tmp_path / "a.png")


@pytest.mark.parametrize("offset", [2**40, 2**63, 2**64 - 1])
def test_a_directory_at_an_impossible_place_is_cut_off(tmp_path: Path, offset: int) -> None:
    file = tiff(tmp_path / "a.tif", bigtiff=True)
    assert not is_cut_off(file)
    data = bytearray(file.read_bytes())
    data[8:16] = struct.pack("<Q", offset)
    file.write_bytes(data)
    assert is_cut_off(file)


def test_an_associated_image_that_does_not_decode_is_an_error_in_words(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.zeros((90, 90, 3), np.uint8), tile=(32, 32), photometric="rgb")
        writer.write(np.zeros((33, 44, 3), np.uint8), photometric="rgb", compression="jpeg")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.series[1].keyframe.dataoffsets[0]
    with (tmp_path / "a.tif").open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\0" * 40)
    with open_slide(tmp_path / "a.tif") as slide, pytest.raises(InputError, match=r"its image 'series 1' cannot be read"):
        slide.read_associated("series 1")


def test_an_associated_image_that_would_fill_the_memory_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labelled_slide(tmp_path / "a.svs", thumbnail=(1000, 900))
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.read_associated("thumbnail").shape == (1000, 900, 3)
        with pytest.raises(InputError, match=r"its image 'thumbnail' would take 3 MB; .* up to 2 MB"):
            slide.read_associated("thumbnail", 500_000)
    # as openslide reads it, for every format of its own
    monkeypatch.setattr(openslide.lowlevel, "read_associated_image", lambda *_: pytest.fail("decoded"))
    with vendor.VendorSlide(tmp_path / "a.svs") as slide, pytest.raises(InputError, match="'thumbnail' would take 4 MB"):
        slide.read_associated("thumbnail", 500_000)


def test_an_image_beside_the_slide_that_is_too_large_is_not_kept_and_the_log_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_labelled_slide(tmp_path / "a.svs", thumbnail=(1000, 900))
    images = ("label", "macro", "thumbnail")
    kept, _ = keep(tmp_path / "a.svs", images, images, tmp_path / "kept", 500_000)
    assert kept == ["label", "macro"] and not (tmp_path / "kept" / "thumbnail.png").exists()
    assert "not kept" in (said := capsys.readouterr().out) and "'thumbnail' would take" in said
    assert keep(tmp_path / "a.svs", images, images, tmp_path / "kept")[0] == list(images)


def test_an_associated_image_whose_strip_holds_a_larger_picture_is_not_unfolded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = bytes(imagecodecs.jpeg8_encode(np.zeros((900, 800), np.uint8)))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.zeros((90, 90, 3), np.uint8), tile=(32, 32), photometric="rgb")
        options: dict[str, Any] = {"photometric": "minisblack", "compression": "jpeg", "rowsperstrip": 33, "metadata": None}
        writer.write(iter([bomb]), shape=(33, 44), dtype=np.uint8, **options)
    monkeypatch.setattr(imagecodecs, "jpeg_decode", lambda *_, **__: pytest.exit("a bomb was decoded"))
    with open_slide(tmp_path / "a.tif") as slide, pytest.raises(InputError, match="holds a picture of 800 x 900 pixels"):
        slide.read_associated("series 1")


def test_a_tile_of_more_bytes_than_the_file_is_a_bad_tile_and_takes_no_memory(tmp_path: Path) -> None:
    with open_slide(tiff(tmp_path / "a.tif", bigtiff=True, compression="zlib")) as slide:
        page = slide._levels[0].pages[0]  # type: ignore[attr-defined]
        # more than any machine has: without the bound this is a MemoryError
        page.databytecounts = (2**50, *page.databytecounts[1:])
        assert (slide.read_region(0, 0, 30, 30) == 255).all() and slide.bad_tiles == 1
        assert not (slide.read_region(0, 40, 30, 30) == 255).all() and slide.bad_tiles == 1


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


def test_a_tile_that_memory_was_short_for_is_no_bad_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiff(tmp_path / "a.tif", compression="zlib")
    with open_slide(file) as slide:
        monkeypatch.setattr(slide, "_read", no_memory)
        with pytest.raises(MemoryError):
            slide.read_region(0, 0, 9, 9)


@pytest.mark.parametrize("opener", ["histomri.io.slides.tiff.TiffSlide", "histomri.io.slides.vendor.detect_vendor"])
def test_a_slide_that_memory_was_short_for_is_not_said_to_be_corrupt(
    tmp_path: Path, opener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiff(tmp_path / "a.tif")
    monkeypatch.setattr(opener, no_memory)
    for read in (probe, open_slide):
        with pytest.raises(MemoryError):
            read(file)


# ---------------------------------------------------------------- volumes and stores


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_volume_that_promises_more_than_its_file_can_hold_is_refused_before_memory_is_taken(tmp_path: Path, name: str) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / name)  # type: ignore[attr-defined, no-untyped-call]
    data = bytearray((gzip.decompress if name.endswith("gz") else bytes)((tmp_path / name).read_bytes()))
    data[42:48] = struct.pack("<hhh", 30000, 30000, 30)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(InputError, match=r"promises 108000 MB of voxels, the file holds"):
        read_nifti(tmp_path / name)


def test_a_volume_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nib.save(nib.Nifti1Image(np.ones((50, 50, 50), np.float32), np.eye(4)), tmp_path / "a.nii.gz")  # type: ignore[attr-defined, no-untyped-call]
    monkeypatch.setattr("histomri.io.nifti.available_memory_mb", lambda: 0.4)
    with pytest.raises(InputError, match=r"read whole.*of memory are free -> resample it"):
        read_nifti(tmp_path / "a.nii.gz")


def test_a_unit_that_nifti_does_not_know_is_no_unit(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))  # type: ignore[attr-defined, no-untyped-call]
    image.header["xyzt_units"] = 7
    nib.save(image, tmp_path / "a.nii")  # type: ignore[attr-defined]
    assert "states no unit" in read_geometry(tmp_path / "a.nii")[1][0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"attributes": 3}', "[" * 100_000, "\xff"])
def test_a_store_whose_metadata_are_damaged_is_an_error_in_words(tmp_path: Path, text: str) -> None:
    array = tmp_path / "a.ome.zarr" / "0"
    array.mkdir(parents=True)
    (array / "zarr.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"the stored pixels cannot be read"):
        omezarr.read_pixels(tmp_path / "a.ome.zarr", "0")


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"type": "Point", "coordinates": [NaN, 1]}', "NaN is not a number"),
        ('{"type": "Point", "coordinates": [1e999, 1]}', "1e999 is not a number"),
        ('{"type": ["Point"], "coordinates": [1, 1]}', "expected a geometry of type"),
        ('{"type": "LineString", "coordinates": [[0, 0], [1e300, 1e300]]}', "steps of 1"),
        ("[" * 100_000, "nested too deeply"),
        ('{"type": "Point", "coordinates": [' + "9" * 400 + ", 1]}", "expected positions"),
    ],
)
def test_geojson_that_no_program_should_write_is_refused_in_words(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(InputError, match=re.escape(words)):
        for shape in geojson.shapes(tmp_path / "a.geojson", geojson.read_document(tmp_path / "a.geojson")):
            geojson.positions(shape, 2, densify=1.0)


def test_half_a_surrogate_pair_comes_out_as_it_went_in(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text('{"type": "Point", "coordinates": [1, 2], "name": "\\ud800é"}')
    document = geojson.read_document(tmp_path / "a.geojson")
    geojson.write_document(tmp_path / "b.geojson", document)
    assert geojson.read_document(tmp_path / "b.geojson") == document


def unfolded(levels: int, times: int) -> str:
    """Lists of aliases of lists of aliases: a few lines that unfold into times ** levels values."""
    lines = [f"v{i}: &v{i} [{', '.join([f'*v{i - 1}'] * times)}]" for i in range(1, levels + 1)]
    return "\n".join(["v0: &v0 [" + "x, " * 200 + "x]", *lines])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("study: 2001-99-99\n", "cannot be read as YAML (ValueError"),
        ("study: &a [*a]\n", "recursive"),
        (unfolded(9, 9), "more than 20 aliases"),
        (unfolded(6, 3), "more than 100000 values"),
        ("a: &a {x: 1}\n" + "b: {<<: [" + ", ".join(["*a"] * 30) + "]}\n", "more than 20 aliases"),
        ("[" * 1500, "cannot be read as YAML (RecursionError"),
        ("study: !!python/object/apply:os.system ['touch pwned']\n", "could not determine a constructor"),
    ],
)
def test_a_config_that_would_run_code_or_unfold_without_end_is_refused(
    tmp_path: Path, content: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    began = time.process_time()
    with pytest.raises(InputError, match=re.escape(words)):
        read_config(tmp_path / "config.yaml")
    assert not (tmp_path / "pwned").exists() and time.process_time() - began < 60


NAMES = [
    "../out",
    "a/b",
    "/etc/x",
    "..",
    ".",
    "-rf",
    "a b",
    "a\\b",
    "x\u202e",
    "~",
    "$(x)",
    "a;b",
    "*",
    "x" * 300,
    "é" * 150,
    "a\x07",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("column", ["section", "block", "stain"])
def test_names_that_lead_out_of_the_output_folder_or_are_no_file_names_are_refused(
    tmp_path: Path, name: str, column: str
) -> None:
    row = {"section": "a", "block": "b", "stain": "s", column: name}
    sheet = tmp_path / "sections.tsv"
    sheet.write_text("file\tposition_mm\tsection\tblock\tstain\na.tif\t0\t" + "\t".join(row.values()) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be part of a file name"):
        read_sections(sheet)


# ---------------------------------------------------------------- transforms and records


def test_a_hdf5_file_that_fails_in_itk_is_refused_by_the_process_that_lives_on(tmp_path: Path) -> None:
    write_affine(tmp_path / "good.h5", Affine(np.eye(3)))
    assert read_rough(tmp_path / "good.h5").ndim == 2
    data = (tmp_path / "good.h5").read_bytes()
    # what follows is not where the file says: HDF5 goes there without looking
    (tmp_path / "bad.h5").write_bytes(data[:3980] + bytes(200) + data[3980:])
    assert fails_in_itk(tmp_path / "bad.h5")
    with pytest.raises(InputError, match=r"cannot be read as an ITK transform \(the file is damaged\)"):
        read_rough(tmp_path / "bad.h5")


@pytest.mark.parametrize(
    "text", ["", "#Insight Transform File V1.0\n", "#Insight Transform File V1.0\nTransform: X\nParameters: nan\n"]
)
def test_a_transform_file_without_a_transform_is_an_error_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.tfm").write_text(text)
    with pytest.raises(InputError, match=r"cannot be read as an ITK transform"):
        read_transform(tmp_path / "a.tfm")


def test_a_rough_transform_of_no_numbers_is_refused(tmp_path: Path) -> None:
    write_affine(tmp_path / "a.tfm", Affine(np.eye(3)))
    text = (tmp_path / "a.tfm").read_text()
    (tmp_path / "a.tfm").write_text(
        text.replace("Parameters: 1 ", "Parameters: 1e308 ").replace("Parameters: 1e308 0", "Parameters: 1e308 1e308")
    )
    with pytest.raises(InputError, match=r"it scales by"):
        read_rough(tmp_path / "a.tfm")


@pytest.mark.parametrize("record", [3, [], {}, {"fields_sha256": 1}, {"block": "b", "sections": []}])
def test_placements_that_are_none_are_an_error_in_words(tmp_path: Path, record: Any) -> None:
    flat = np.zeros(0, np.float32)
    np.save(tmp_path / "a.fields.npy", flat)
    if isinstance(record, dict) and "block" in record:
        record = {**record, "fields_sha256": hashlib.sha256(b"").hexdigest(), "mri_to_block": None, "quality": {}}
    (tmp_path / "a.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"a\.json|a\.fields\.npy"):
        read_placements(tmp_path / "a.json")


@pytest.mark.parametrize(
    "change",
    [{"spaces": 3}, {"edges": None}, {"edges": [3]}, {"edges": [{"from": "x", "to": "y", "file": "z"}]}, {"spaces": {"a": {}}}],
)
def test_a_damaged_graph_is_an_error_in_words(tmp_path: Path, change: dict[str, Any]) -> None:
    record = {"version": 1, "spaces": {"mri": {"type": "mri"}}, "edges": [], **change}
    (tmp_path / "graph.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"graph\.json"):
        read_graph(tmp_path / "graph.json")


@pytest.mark.parametrize("length", [60, 100, 127])
def test_displacements_whose_header_is_damaged_are_an_error_in_words(tmp_path: Path, length: int) -> None:
    """NumPy raises errors of the tokenizer over some of them."""
    write_lock(tmp_path / "lock")
    (tmp_path / "lock" / "lock.fields.npy").write_bytes(np_header(length))
    with pytest.raises(InputError, match=r"lock\.json"):
        read_placements(tmp_path / "lock" / "lock.json")


def np_header(length: int) -> bytes:
    """The header of an array of Python 2's, which is read word by word, cut off inside a bracket and filled up."""
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (40L,"
    return b"\x93NUMPY\1\0" + struct.pack("<H", length) + text.ljust(length)


# ---------------------------------------------------------------- the code


# these say so in words, or ask whether there is something at all
NOT_READERS = {"check.py", "picture_codecs.py"}


def test_no_reader_takes_a_lack_of_memory_for_a_damaged_file() -> None:
    """Whoever catches everything lets a MemoryError through first."""
    for file in sorted({*(ROOT / "src" / "histomri" / "io").rglob("*.py")}):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Try) or file.name in NOT_READERS:
                continue
            caught = [ast.unparse(h.type) if h.type else "BaseException" for h in node.handlers]
            for number, (kind, handler) in enumerate(zip(caught, node.handlers, strict=True)):
                goes_on = not (isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None)
                where = f"{file.name}:{handler.lineno}"
                if goes_on and kind in ("Exception", "BaseException") and "get(coded" not in ast.unparse(node):
                    assert any("MemoryError" in before for before in caught[:number]), where
                assert not goes_on or "MemoryError" not in kind, where


def test_no_pickle_and_no_unsafe_yaml_anywhere() -> None:
    files = [
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "workflow").rglob("*.py"),
        *(ROOT / "workflow").rglob("*.smk"),
        ROOT / "Snakefile",
    ]
    unsafe = re.compile(
        r"\bpickle\b(?!=False)|allow_pickle\s*=\s*True|\bshelve\b|\bmarshal\b|\bjoblib\b|yaml\.(unsafe_load|full_load|Loader|UnsafeLoader)"
        r"|\beval\(|(?<!\.)\bexec\(|os\.system|shell=True"
    )
    found = [
        f"{f.relative_to(ROOT)}:{n}: {line}"
        for f in files
        for n, line in enumerate(f.read_text().splitlines(), 1)
        if unsafe.search(line)
    ]
    assert [line for line in found if "testing/mutants.py" not in line] == []
    loads = [line for f in files for line in f.read_text().splitlines() if "np.load(" in line]
    assert loads and all("allow_pickle=False" in line for line in loads)
