"""How fast a slide becomes a pyramid, in one run: ours, the bare decoder and codec, libvips, a plain openslide loop.

    python tests/benchmarks/ingest_speed.py [--gigapixels 0.1,0.4,1.6] [--methods ours,floor,vips-deflate,...] [--json FILE]

Each measurement is a process of its own, so that its CPU time and peak memory are its own; methods take turns within each repeat.
Rates are megapixels of level 0 per second of wall time. ``floor`` is imagecodecs decoding the slide's tiles, then the same codec
compressing the same chunks, both with the same number of threads, times added up; nothing else that the work needs is in it.
Bytecode and compiled kernels are kept from run to run, as an installation keeps them: of several repeats the least counts.
Slides are synthetic (``histomri.testing.big_slide``) and written to ``--scratch``, or any file given with ``--slide``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[2] / ".venv-bench" / "bin" / "python"  # has pyvips (make bench-env)
CHUNK, SHARD = 512, 2048
PICTURES = ("jpeg", "jpegxl")


def ours(slide: Path, out: Path, threads: int, codec: str) -> None:
    """The stage: pyramid, mask, hash, manifest."""
    from histomri.core import Section
    from histomri.stages.ingest import IngestSettings, ingest_section

    settings = IngestSettings(chunk_px=CHUNK, shard_px=SHARD, codec=codec)
    section = Section("a", slide, 0.0, pixel_size_mm=0.0005)
    record = ingest_section(section, out / "a.ome.zarr", out / "manifest.json", settings, threads=threads)
    assert record.status == "ok", record.flags


def plain_encoder(codec: str) -> Any:
    """The codec as a library offers it, bytes of a chunk."""
    import imagecodecs
    import numcodecs

    if codec == "zstd":
        return lambda chunk: imagecodecs.zstd_encode(chunk, level=1)
    if codec == "none":
        return lambda chunk: chunk.tobytes()
    if codec == "jpeg":
        return lambda chunk: imagecodecs.jpeg8_encode(chunk, level=90, subsampling="420")
    if codec == "jpegxl":
        return lambda chunk: imagecodecs.jpegxl_encode(chunk, effort=1, lossless=True)
    return numcodecs.Blosc(cname=codec.removeprefix("blosc-"), clevel=3, shuffle=numcodecs.Blosc.BITSHUFFLE).encode


def floor(slide: Path, out: Path, threads: int, codec: str) -> dict[str, float]:
    """Seconds of decoding all tiles of level 0, and of compressing them as chunks; what lies between is not counted."""
    import imagecodecs
    import numpy as np
    import tifffile

    encode, stored, wall, cpu = plain_encoder(codec), 0, [0.0, 0.0], [0.0, 0.0]
    with tifffile.TiffFile(slide) as tiff, slide.open("rb") as file, ThreadPoolExecutor(threads) as pool:
        page: Any = tiff.pages[0]
        colours = tifffile.tifffile.jpeg_decode_colorspace(page.photometric, page.planarconfig, page.extrasamples, page.is_jfif)

        def decode(index: int) -> Any:
            data = os.pread(file.fileno(), page.databytecounts[index], page.dataoffsets[index])
            return imagecodecs.jpeg8_decode(data, tables=page.jpegtables, colorspace=colours[0], outcolorspace=colours[1])

        def timed(which: int, work: Any, items: Any) -> int:
            began, used = time.perf_counter(), time.process_time()
            total = sum(pool.map(work, items))
            wall[which] += time.perf_counter() - began
            cpu[which] += time.process_time() - used
            return total

        for start in range(0, len(page.dataoffsets), 512):
            batch = range(start, min(start + 512, len(page.dataoffsets)))
            timed(0, lambda index: decode(index).shape[0], batch)
            tiles = list(pool.map(decode, batch))
            # four tiles make a chunk, as planes or as a picture
            quads = [np.concatenate(tiles[i : i + 4]) for i in range(0, len(tiles), 4)]
            if codec not in PICTURES:
                quads = [np.ascontiguousarray(np.moveaxis(q, -1, 0)) for q in quads]
            stored += timed(1, lambda chunk: len(encode(chunk)), quads)
    pixels = 3 * page.imagewidth * page.imagelength
    own = {"seconds": sum(wall), "cpu_s": sum(cpu), "decode": cpu[0], "encode": cpu[1]}
    # a pyramid has a third more pixels to compress; what is asked for does not count them
    own |= {"seconds_with_levels": wall[0] + wall[1] * 4 / 3, "cpu_with_levels": cpu[0] + cpu[1] * 4 / 3}
    return own | {"stored_over_pixels": stored / pixels}


def loop(slide: Path, out: Path, threads: int, codec: str) -> None:
    """What one writes first: read_region by blocks into zarr, then each level from the one before."""
    import cv2
    import numpy as np
    import openslide
    import zarr

    from histomri.io.omezarr import compressors

    with openslide.OpenSlide(slide) as opened:
        width, height = opened.dimensions
        group = zarr.open_group(str(out / "loop.zarr"), mode="w", zarr_format=3)
        kind: dict[str, Any] = {"dtype": "uint8", "chunks": (3, CHUNK, CHUNK), "compressors": compressors(codec)}
        level, shape = 0, (height, width)
        array = group.create_array("0", shape=(3, *shape), **kind)
        for y, x in itertools.product(range(0, height, 1024), range(0, width, 1024)):
            size = min(1024, width - x), min(1024, height - y)
            pixels = np.asarray(opened.read_region((x, y), 0, size).convert("RGB"))
            array[:, y : y + size[1], x : x + size[0]] = np.moveaxis(pixels, -1, 0)
        while max(shape) > 256:
            level, shape = level + 1, ((shape[0] + 1) // 2, (shape[1] + 1) // 2)
            above = group.create_array(str(level), shape=(3, *shape), **kind)
            for y, x in itertools.product(range(0, shape[0], 1024), range(0, shape[1], 1024)):
                part = array[:, 2 * y : 2 * y + 2048, 2 * x : 2 * x + 2048]
                size = (part.shape[2] + 1) // 2, (part.shape[1] + 1) // 2
                halved = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in part])
                above[:, y : y + size[1], x : x + size[0]] = halved
            array = above


def vips(slide: Path, out: Path, threads: int, codec: str) -> None:
    """A pyramid by libvips: TIFF of ``deflate`` (lossless; the wheel has no zstd) or ``jpeg``, or ``dzsave``: JPEG files."""
    import pyvips

    image = pyvips.Image.new_from_file(str(slide), access="sequential")
    if codec == "dzsave":
        image.dzsave(str(out / "a"), suffix=".jpg[Q=85]", tile_size=256, overlap=0)
        return
    options = {"Q": 85} if codec == "jpeg" else {}
    kind = {"compression": codec, "tile_width": 512, "tile_height": 512}
    image.tiffsave(str(out / "a.tif"), tile=True, pyramid=True, bigtiff=True, subifd=True, **kind, **options)


JOBS = {"ours": ours, "floor": floor, "loop": loop, "vips": vips}


def run_job(arguments: list[str]) -> None:
    """One measurement, in this process; its figures as JSON on stdout."""
    job, slide, out, threads, codec = arguments
    began = time.perf_counter()
    extra = JOBS[job](Path(slide), Path(out), int(threads), codec) or {}
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"seconds": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}
    print(json.dumps(figures | extra))


def measured(method: str, slide: Path, scratch: Path, threads: int, bench: Path) -> dict[str, Any]:
    """Run one method (``job`` or ``job-codec``) in a process of its own."""
    job, _, codec = method.partition("-")
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    python = str(bench) if job == "vips" else sys.executable
    limits = {"VIPS_CONCURRENCY": str(threads), "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    command = [python, __file__, "--job", job, str(slide), str(out), str(threads), codec or "zstd"]
    # an installed package has its bytecode
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, env=usual | limits)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    figures["written_mb"] = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    shutil.rmtree(out)
    return figures


def make_slide(folder: Path, gigapixels: float) -> tuple[Path, int]:
    """A synthetic slide of about that size (5 : 4); its path and pixels."""
    from histomri.testing.big_slide import BigSlide, write_big_slide

    side = (gigapixels * 1e9 / 1.25) ** 0.5
    shape = (round(side), round(1.25 * side))
    path = folder / f"{gigapixels:g}.svs"
    write_big_slide(path, BigSlide(shape))
    return path, shape[0] * shape[1]


def pixels_of(slide: Path) -> int:
    """Level-0 pixels of a slide file."""
    from histomri.io.slides import probe

    height, width = probe(slide).shape
    return height * width


def main() -> None:
    if sys.argv[1:2] == ["--job"]:
        run_job(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigapixels", default="0.1,0.4,1.6")
    parser.add_argument("--methods", default="ours,floor,vips-deflate,vips-jpeg,vips-dzsave,loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "histomri-ingest-speed")
    parser.add_argument("--bench-python", type=Path, default=BENCH)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in [0.0] if options.slide else map(float, options.gigapixels.split(",")):
        slide, pixels = (options.slide, pixels_of(options.slide)) if options.slide else make_slide(options.scratch, size)
        best: dict[str, dict[str, Any]] = {}
        for repeat, method in itertools.product(range(options.repeats), options.methods.split(",")):
            found = measured(method, slide, options.scratch, options.threads, options.bench_python)
            rows.append({"gigapixels": pixels / 1e9, "method": method, "repeat": repeat, "load": os.getloadavg()[0], **found})
            if "error" not in found and found["seconds"] < best.get(method, {"seconds": 1e9})["seconds"]:
                best[method] = found
            elif "error" in found:
                print(f"{method}: {found['error']}", flush=True)
        show(pixels, best)
        if not options.slide:
            slide.unlink()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def show(pixels: int, best: dict[str, dict[str, Any]]) -> None:
    """A table of one slide's figures; ratios are of rates, ours over the other's."""
    print(f"{pixels / 1e9:.3g} gigapixels, load {os.getloadavg()[0]:.1f}")
    mine = best.get("ours", best.get("ours-zstd"))
    for method, found in best.items():
        ratios = [found[k] / mine[k] for k in ("seconds", "cpu_s")] if mine else [0.0, 0.0]
        ratio = f"ours / it {ratios[0]:.2f} (by CPU seconds {ratios[1]:.2f})"
        more = "".join(f", {k} {found[k]:.2f}" for k in ("decode", "encode", "stored_over_pixels") if k in found)
        if mine and "cpu_with_levels" in found:
            counted = [found[f"{k}_with_levels"] / mine[j] for k, j in (("seconds", "seconds"), ("cpu", "cpu_s"))]
            more += f"; its compressing of the levels counted too {counted[0]:.2f} ({counted[1]:.2f})"
        print(
            f"  {method:12} {pixels / 1e6 / found['seconds']:7.1f} MP/s {found['seconds']:7.1f} s, cpu {found['cpu_s']:7.1f} s,"
            f" {found['peak_mb']:6.0f} MB, bytes/pixels {found['written_mb'] * 1e6 / 3 / pixels:.3f}  {ratio}{more}",
            flush=True,
        )


if __name__ == "__main__":
    main()
