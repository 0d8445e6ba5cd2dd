"""Small valid files of every kind that histomri reads, for :mod:`histomri.testing.fuzz` to spoil."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tifffile
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.io.graph import write_graph
from histomri.io.nifti import write_nifti
from histomri.io.omezarr import PyramidSpec, Storage, mask_pyramid, write_label, write_pyramid
from histomri.io.placements import write_placements
from histomri.io.pyramid import Reading
from histomri.io.transform_files import write_affine, write_chain
from histomri.testing.big_slide import BigSlide, write_big_slide
from histomri.testing.dicom_slide import DicomSlide, write_dicom_slide
from histomri.transforms import Affine, Chain, DisplacementField
from histomri.transforms.placement import Placement, Placements

Pixels = NDArray[Any]
nib: Any = nibabel
SHAPE = (70, 90)
SECTIONS = """\
section\tfile\tblock\tposition_mm\tindex\tthickness_mm\tstain\tpixel_size_mm\tregion\tchannel\tstatus\tflip\trotation_deg\t\
transform\ttransform_from
a\ta.tif\tb\t0.5\t\t0.02\tHE\t0.0005\t0,0,40,30\t0\tok\tauto\t90\t\t
b\ta.tif\tb\t\t2\t\tNissl\t\tauto:2/3\t\tdamaged\thorizontal\t\tr.tfm\ta
# lost
c\t\tb\t3\t\t\t\t\t\t\tmissing\t\t\t\t
"""
BLOCKS = "block\tmri\tmri_mask\tblockface_pixel_size_mm\tmirror\tpose\nb\tmri.nii.gz\tmask.nii.gz\t0.05\tno\t\n"
LANDMARKS = "name\tsection\tx\ty\tmri_x\tmri_y\tmri_z\np\ta\t10\t12.5\t1\t-2\t3e0\nq\tb\t0\t1\t2\t3\t4\n"
GUIDES = "section\tx\ty\tmri_x\tmri_y\tmri_z\tto_section\tto_x\tto_y\na\t1\t2\t3\t4\t5\t\t\t\nb\t1\t2\t\t\t\ta\t5\t6\n"
POINTS = "name,x,y,z,reason,error_mm\np,1,2,3,,0.5\n\nq,,,,lost,\n"
CONFIG = """\
study: "fuzz"
sections: sections.tsv
blocks: blocks.tsv
output: out
section_spacing_mm: 0.5
pixel_size_mm: null
ingest: {codec: zstd, keep: [label], stains: {HE: {vectors: [[0.6, 0.7, 0.2], [0.1, 0.9, 0.3]], names: [h, e], estimate: true}}}
stack:
  reach: 3
  batch: 16
resample:
  grids:
    - {name: fine, spacing_mm: 0.05}
evaluate: &e {report_pixels: 300}
"""
GEOJSON: dict[str, Any] = {
    "type": "FeatureCollection",
    "features": [
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {"name": "p", "error_mm": 0.1}},
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
            "nucleusGeometry": {"type": "LineString", "coordinates": [[1, 1], [2, 3]]},
            "properties": None,
            "bbox": [0, 0, 9, 9],
        },
        {
            "type": "Feature",
            "properties": {},
            "geometry": {"type": "GeometryCollection", "geometries": [{"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}]},
        },
    ],
}
_ARRAY = {"shape": [6], "dtype": "float32", "sha256": "0" * 64}
PROVENANCE: dict[str, Any] = {
    "study": "fuzz",
    "written_at": "2026-11-29T10:00:00+00:00",
    "command": "histomri run config.yaml",
    "histomri": {"version": "0.1.0", "git_revision": None, "code": {"stack/solve": "0"}},
    "python": "3.11.0",
    "packages": {"numpy": "2.0.0"},
    "lock": None,
    "machine": {"system": "Linux", "cores": 2, "memory_gb": 8.0, "threads": None},
    "seeds": {"engine": 0},
    "config": {"study": "fuzz", "sections": "sections.tsv", "output": "out", "section_spacing_mm": 0.5, "stack": {"reach": 3}},
    "study_folder": "..",
    "inputs": {"sections.tsv": {"bytes": 3, "sha256": "0" * 64}, "elsewhere/a.tif": {"content_sha256": "0" * 64}},
    "outputs": {
        "stack/b/placements.json": {"bytes": 3, "sha256": "0" * 64, "arrays": {"numbers": _ARRAY, "words": _ARRAY}},
        "sections/a.ome.zarr": {"content_sha256": "0" * 64},
    },
}
METRICS: dict[str, Any] = {
    "study": "fuzz",
    "pose": {"b": {"confidence": 0.6, "warning": "its pose is in doubt"}, "c": None},
    "sections": {"total": 3, "placed": 2, "flagged": 1, "lost": 1, "mirrored": 0},
    "tre_mm": {"n": 120, "median": 0.2, "mean": 0.2, "p95": 0.45, "max": 0.8},
    "mask_dice": {"median": 0.97, "p10": 0.9},
}
POSE: dict[str, Any] = {
    "block": "b",
    "mri_to_block": [[1, 0, 0, 2.5], [0, 0.8, -0.6, 0], [0, 0.6, 0.8, -3], [0, 0, 0, 1]],
    "confidence": 0.93,
    "metrics": {"nmi": 1.2, "mask_dice": 0.9, "mirrored": False},
    "candidates": [],
    "sections_as": "neighbours",
}
LOCK = "sound_lock"
OME = """\
<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="90" SizeY="70" SizeC="2" SizeZ="3" SizeT="1"
PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel ID="Channel:0:0" Name="DAPI"/><Channel ID="Channel:0:1" Name="Cy5"/><TiffData/>
</Pixels></Image></OME>"""


def picture(shape: tuple[int, ...], dtype: str = "uint8") -> Pixels:
    """Smooth pixels, repeatable, that every codec takes."""
    places = np.indices(shape).sum(axis=0)
    pixels: Pixels = ((np.sin(places / 7) + 1) * (1 if dtype == "float32" else 100)).astype(dtype)
    return pixels


def make_seeds(folder: Path) -> dict[str, list[Path]]:
    """Write a few files of each kind; their paths by the name in :data:`histomri.testing.fuzz.READERS` of what reads them."""
    makers = {
        "tiff": _tiffs,
        "svs": _svs,
        "picture": _pictures,
        "nifti": _niftis,
        "zarr": _zarrs,
        "geojson": _geojson,
        "points": _points,
        "sections": _sheet("sections.tsv", SECTIONS),
        "blocks": _sheet("blocks.tsv", BLOCKS),
        "landmarks": _sheet("landmarks.tsv", LANDMARKS),
        "guides": _sheet("guides.tsv", GUIDES),
        "config": _sheet("config.yaml", CONFIG),
        "transform": _transforms,
        "hdf5": _hdf5,
        "lock": _locks,
        "fields": _fields,
        "graph": _graph,
        "pose": _poses,
        "dicom": _dicom,
        "photograph": _photographs,
        "provenance": _json("provenance.json", PROVENANCE),
        "metrics": _json("metrics.json", METRICS),
        "found_pose": _json("pose.json", POSE),
    }
    found = {}
    write_lock(folder / LOCK)
    for reader, make in makers.items():
        own = folder / reader
        own.mkdir(parents=True)
        found[reader] = make(own)
    return found


def _sheet(name: str, text: str) -> Any:
    def make(folder: Path) -> list[Path]:
        (folder / name).write_text(text, encoding="utf-8")
        return [folder / name]

    return make


def _tiffs(folder: Path) -> list[Path]:
    rgb, grey = picture((*SHAPE, 3)), picture(SHAPE, "uint16")
    tile: dict[str, Any] = {"tile": (32, 32), "photometric": "rgb"}
    ways: dict[str, tuple[Pixels, dict[str, Any]]] = {
        codec: (rgb, {**tile, "compression": codec})
        for codec in ("jpeg", "zlib", "lzw", "zstd", "webp", "jpeg2000", "jpegxl", "packbits", "png", "jpegxr", "lerc", "lzma")
    }
    ways |= {
        "plain": (rgb, tile),
        "strips": (
            grey,
            {"rowsperstrip": 16, "compression": "lzw", "predictor": True, "resolution": (2e4, 2e4), "resolutionunit": 3},
        ),
        "planar": (picture((3, *SHAPE), "float32"), {"photometric": "minisblack", "planarconfig": "separate", "tile": (32, 32)}),
        "big": (grey, {"bigtiff": True, "byteorder": ">", "tile": (32, 32)}),
        "imagej": (picture((2, 3, *SHAPE)), {"imagej": True, "metadata": {"axes": "ZCYX", "unit": "um", "spacing": 2}}),
        "ome": (picture((3, 2, *SHAPE)), {"metadata": None, "description": OME}),
        "palette": (picture(SHAPE), {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
        "bilevel": (picture(SHAPE) > 99, {"photometric": "minisblack"}),
    }
    for name, (pixels, options) in ways.items():
        tifffile.imwrite(folder / f"{name}.tif", pixels, **options)
    with tifffile.TiffWriter(folder / "pyramid.tif") as writer:
        writer.write(rgb, subifds=1, **tile)
        writer.write(rgb[::2, ::2], subfiletype=1, **tile)
    return sorted(folder.iterdir())


def _svs(folder: Path) -> list[Path]:
    write_big_slide(folder / "a.svs", BigSlide((300, 260), tile_px=64, textures=2))
    write_labelled_slide(folder / "labelled.svs")
    return sorted(folder.iterdir())


def write_labelled_slide(path: Path, thumbnail: tuple[int, int] = (90, 80)) -> None:
    """A small SVS with thumbnail, label and macro, as Aperio's scanners write them."""
    said, strips = "Aperio Image Library v11\n", {"rowsperstrip": 16, "compression": "jpeg"}
    whole = {"tile": (64, 64), "compression": "jpeg", "description": said + "260x300 (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"}
    ways: list[tuple[tuple[int, int], dict[str, Any]]] = [
        ((300, 260), whole),
        (thumbnail, {**strips, "description": said}),
        ((48, 40), {"compression": "lzw", "subfiletype": 1, "description": said + "label 40x48"}),
        ((40, 100), {**strips, "subfiletype": 9, "description": said + "macro 100x40"}),
    ]
    with tifffile.TiffWriter(path) as writer:
        for shape, options in ways:
            writer.write(picture((*shape, 3)), photometric="rgb", metadata=None, **options)


def _pictures(folder: Path) -> list[Path]:
    from PIL import Image as Pillow
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("Author", "x", zip=True)
    rgb = Pillow.fromarray(picture((*SHAPE, 3)))
    rgb.save(folder / "rgb.png", dpi=(25400, 25400), pnginfo=notes)
    rgb.convert("RGBA").save(folder / "rgba.png")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("1").save(folder / "bits.png")
    Pillow.fromarray(picture(SHAPE, "uint16")).save(folder / "deep.png")
    exif = Pillow.Exif()
    exif[315] = "artist"
    rgb.save(folder / "rgb.jpg", exif=exif, comment=b"note", dpi=(300, 300))
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("L").save(folder / "grey.jpg")
    return sorted(folder.iterdir())


def _niftis(folder: Path) -> list[Path]:
    grid = Grid((5, 6, 7), np.array([0.5, 0.4, 0.3]))
    volume = picture((5, 6, 7), "float32")
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(folder / name, Image(grid, volume))
    write_nifti(folder / "rgb.nii", Image(grid, picture((5, 6, 7, 3)), ("red", "green", "blue")))
    write_nifti(folder / "vectors.nii.gz", Image(grid, picture((5, 6, 7, 2), "float32"), ("u", "v")))
    nib.save(nib.Nifti2Image(volume, np.eye(4)), folder / "two.nii")
    nib.save(nib.Nifti2Image(volume, np.eye(4)), folder / "two.nii.gz")
    scaled = nib.Nifti1Image(volume.astype(np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.5, 3)
    nib.save(scaled, folder / "scaled.nii")
    return sorted(folder.iterdir())


def _zarrs(folder: Path) -> list[Path]:
    import zarr
    from zarr.codecs import GzipCodec, ZstdCodec

    pixels, grid = picture((*SHAPE, 3)), Grid(SHAPE, np.array([0.001, 0.001]))
    for codec in ("zstd", "blosc-lz4", "none", "jpegxl", "jpeg"):
        store = folder / f"{codec}.ome.zarr"
        reading = Reading(lambda y, x, h, w: pixels[y : y + h, x : x + w])
        write_pyramid(store, PyramidSpec("a", grid, ("red", "green", "blue"), "uint8", 2), reading, Storage(32, 64, codec))
        write_label(store, "tissue", *mask_pyramid(pixels[..., 0] > 90, grid, 2), Storage(32, 64))
    old = zarr.open_group(str(folder / "old.ome.zarr"), mode="w", zarr_format=2)
    old.create_array("0", data=picture((2, 3, *SHAPE), "uint16"), chunks=(1, 1, 32, 32))
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    scale = [{"type": "scale", "scale": [1, 2, 0.5, 0.5]}]
    datasets: Any = [{"path": "0", "coordinateTransformations": scale}]
    multiscales: Any = [{"version": "0.4", "axes": [{"name": "c", "type": "channel"}, *axes], "datasets": datasets}]
    old.attrs["multiscales"] = multiscales
    other = zarr.open_group(str(folder / "gzip.ome.zarr"), mode="w")
    options: Any = {"chunks": (1, 1, 32, 32), "shards": (1, 3, 64, 64), "compressors": [GzipCodec(), ZstdCodec()]}
    other.create_array("0", data=picture((2, 3, *SHAPE), "uint16"), **options)
    other.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    return sorted(folder.iterdir())


def _geojson(folder: Path) -> list[Path]:
    (folder / "a.geojson").write_text(json.dumps(GEOJSON))
    (folder / "b.geojson").write_text(json.dumps(GEOJSON["features"][1]))
    return sorted(folder.iterdir())


def _points(folder: Path) -> list[Path]:
    (folder / "a.csv").write_text(POINTS)
    (folder / "a.tsv").write_text(POINTS.replace(",", "\t"))
    return sorted(folder.iterdir())


def _field() -> DisplacementField:
    return DisplacementField(Grid((4, 5), np.array([1.0, 1.0])), 0.1 * picture((4, 5, 2), "float32").astype(float))


TURN = Affine(np.array([[0.8, -0.6, 1.0], [0.6, 0.8, 2.0], [0, 0, 1]]))


def _transforms(folder: Path) -> list[Path]:
    write_affine(folder / "a.tfm", TURN)
    write_affine(folder / "b.tfm", Affine(np.eye(4)))
    write_chain(folder / "chain.tfm", Chain((TURN, _field())))
    return sorted(folder.iterdir())


def _hdf5(folder: Path) -> list[Path]:
    write_affine(folder / "a.h5", TURN)
    write_chain(folder / "chain.h5", Chain((TURN, _field())))
    write_affine(folder / "pose.h5", Affine(np.eye(4)))
    return sorted(folder.iterdir())


def write_lock(folder: Path) -> None:
    """A sound lock, of which one half or the other is spoiled."""
    folder.mkdir(parents=True)
    placement = Placement("a", 0.5, Affine(np.eye(3), "block:b", "section:a"), _field(), ("flag",), 0.9, {"ncc": 0.5})
    write_placements(folder / "lock.json", Placements("b", {"a": placement}, Affine(np.eye(4), "mri", "block:b"), {}))


def _locks(folder: Path) -> list[Path]:
    return [Path(shutil.copy(folder.parent / LOCK / "lock.json", folder))]


def _fields(folder: Path) -> list[Path]:
    return [Path(shutil.copy(folder.parent / LOCK / "lock.fields.npy", folder))]


def write_lock_parts(path: Path, sound: Path) -> None:
    """What a spoiled half of a lock needs beside it: its displacements, or a JSON with the checksum that the spoiled ones have.

    With the checksum of the sound ones they would be refused before anything is read of them.
    """
    fields, record = path.with_name("case.fields.npy"), path.with_name("case.json")
    if path != fields:
        shutil.copyfile(sound / "lock.fields.npy", fields)
        return
    content = json.loads((sound / "lock.json").read_text(encoding="utf-8"))
    with suppress(Exception):  # NumPy raises whatever it likes; then no checksum matters
        values = np.load(fields, mmap_mode="r", allow_pickle=False)
        content["fields_sha256"] = hashlib.sha256(values.tobytes()).hexdigest()
    record.write_text(json.dumps(content), encoding="utf-8")


def _poses(folder: Path) -> list[Path]:
    turn = np.eye(4)
    turn[:3, 3], turn[1:3, 1:3] = (1, -2, 3), ((0.8, -0.6), (0.6, 0.8))
    write_affine(folder / "pose.tfm", Affine(turn))
    versor = "#Insight Transform File V1.0\n#Transform 0\nTransform: VersorRigid3DTransform_double_3_3\n"
    (folder / "versor.tfm").write_text(versor + "Parameters: 0.1 0.2 0 1 2 3\nFixedParameters: 0 0 0\n")
    return sorted(folder.iterdir())


def _dicom(folder: Path) -> list[Path]:
    write_dicom_slide(folder / "series", picture((130, 150, 3)), DicomSlide(levels=2))
    return [folder / "series"]


def _photographs(folder: Path) -> list[Path]:
    """As a camera or a photograph's program writes them; the plain pictures too."""
    _pictures(folder)
    rgb, deep = picture((*SHAPE, 3)), picture((*SHAPE, 3), "uint16")
    ways: dict[str, tuple[Pixels, dict[str, Any]]] = {
        "plain": (rgb, {}),
        "strips": (rgb, {"rowsperstrip": 16, "compression": "lzw", "predictor": True}),
        "tiles": (rgb, {"tile": (32, 32), "compression": "zlib"}),
        "jpeg": (rgb, {"tile": (32, 32), "compression": "jpeg"}),
        "deep": (deep, {"byteorder": ">"}),
        "planar": (np.moveaxis(rgb, -1, 0), {"planarconfig": "separate"}),
    }
    for name, (pixels, options) in ways.items():
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb", **options)
    tifffile.imwrite(folder / "float.tif", picture(SHAPE, "float32"), photometric="minisblack")
    tifffile.imwrite(folder / "bilevel.tif", picture(SHAPE) > 99, photometric="minisblack")
    tifffile.imwrite(folder / "palette.tif", picture(SHAPE), photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    return sorted(folder.iterdir())


def _json(name: str, content: Any) -> Any:
    return _sheet(name, json.dumps(content))


def _graph(folder: Path) -> list[Path]:
    section = {
        "type": "section", "block": "b", "pixel_size_mm": [0.001, 0.001], "shape": [70, 90], "position_mm": 0.5,
        "plane_reach_mm": 0.25, "placed": True, "confidence": 1.0, "error_mm": 0.1, "flags": [], "stain": "HE",
        "level_0": "../sections/a.ome.zarr",
    }  # fmt: skip
    spaces: dict[str, Any] = {"section:a": section, "slide:a": {"type": "slide", "offset_px": [3, 4]}}
    spaces |= {"block:b": {"type": "block"}, "mri": {"type": "mri"}}
    edges = [{"from": "block:b", "to": "section:a", "file": "block_to_a.tfm", "inverse_file": "a_to_block.tfm", "maps": "points"}]
    edges += [{"from": "mri", "to": "block:b", "file": "mri_to_block.tfm", "inverse_file": "block_to_mri.tfm", "maps": "points"}]
    write_graph(folder / "graph.json", spaces, edges)
    return [folder / "graph.json"]
