"""Viewers in a browser: Neuroglancer shows every level of an ingested slide where it belongs, Vizarr shows its colours.

Both are taken ready built from their registries, once, into pytest's cache. Chromium may reach nothing but this machine.
"""

from __future__ import annotations

import hashlib
import html
import json
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
from chromium import Browser, served
from test_ingest import ingest, slide_pixels, write_slide

from histomri.core import Section
from histomri.io.sections import SectionManifest, open_tissue

SIDE = 400  # of the page, in pixels
ZOOM = 4  # screen pixels per pixel of the level shown
PATIENCE_S = 20
ROUNDING = 0.51  # of averages, in grey levels
PIP = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--retries=0", "--timeout=10"]
NEUROGLANCER = [*PIP, "--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "neuroglancer==2.41.2"]
NEUROGLANCER_SHA256 = "fbfab095d4e11c103c6beb4109aaa6f6bd910cf187e406bc181e53a66721a08b"
VIZARR = ["npm", "pack", "--silent", "--fetch-retries=0", "--fetch-timeout=10000", "@galaxyproject/vizarr@0.1.8"]
VIZARR_SHA256 = "c09c8017e9bd69a2ed24ae3af32e61cfaa0d4e563b31aea1e2ffdd32877217bf"


def package(folder: Path, command: list[str], sha256: str) -> Path:
    """The unpacked package that ``command`` downloads into its working directory; skips where it cannot be had."""
    unpacked = folder / sha256
    if unpacked.is_dir():
        return unpacked
    partial = folder / f"{sha256}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        done = subprocess.run(command, cwd=partial, capture_output=True, text=True, timeout=90, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{command[-1]} cannot be had: {error}")
    if done.returncode:
        pytest.skip(f"{command[-1]} cannot be had: {(done.stderr or done.stdout).strip()[-300:]}")
    (file,) = partial.iterdir()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256, f"{file.name} is not the file that was pinned"
    with zipfile.ZipFile(file) if file.suffix == ".whl" else tarfile.open(file) as archive:
        archive.extractall(partial)
    return partial.rename(unpacked)


@pytest.fixture(scope="module")
def packages(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("viewers")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium")
    (tmp_path / "profile").mkdir()
    opened = Browser(program, tmp_path / "profile", (SIDE, SIDE))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pixels() -> Any:
    """Tissue off the centre, so that a turned or mirrored image is another; the shape halves to odd sizes."""
    return slide_pixels((421, 557))[30:, 40:]


@pytest.fixture(scope="module")
def section(pixels: Any, tmp_path_factory: pytest.TempPathFactory) -> SectionManifest:
    """A slide of 1 um pixels as five levels; two of them in shards of 2 x 2 chunks of 64 pixels, the others in one file."""
    folder = tmp_path_factory.mktemp("section")
    return ingest(folder, Section("a", write_slide(folder / "a.tif", pixels), 0.0))


def settled(browser: Browser, is_right: Callable[[Any], bool]) -> Any:
    """A screenshot, without controls, as soon as it is right; the last one where none is."""
    browser.evaluate("document.head.append(Object.assign(document.createElement('style'), {textContent: '" + ONLY_CANVAS + "'}))")
    until = time.monotonic() + PATIENCE_S
    while not is_right(found := browser.screenshot()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


ONLY_CANVAS = "* {visibility: hidden !important} canvas {visibility: visible !important}"


def levels_of(pixels: Any, count: int) -> list[Any]:
    """Levels by averaging 2 x 2 in float64, a ragged edge repeated."""
    levels = [pixels.astype(float)]
    for _ in range(count - 1):
        last = levels[-1]
        even = np.pad(last, ((0, last.shape[0] % 2), (0, last.shape[1] % 2), (0, 0)), mode="edge")
        levels.append(even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, -1).mean((1, 3)))
    return levels


def seen(level: Any, k: int, centre_um: tuple[float, float], slide: Any) -> tuple[Any, Any]:
    """What a page centred on a place shows of level k (y, x, c), and where that is known (y, x).

    A pixel of level k is 2^k um wide, the first centred on (2^k - 1) / 2 um. Up to 16 um beyond the slide, coarser levels'
    ragged last pixels show below finer ones; that is left out.
    """
    offset_um = (np.arange(SIDE) + 0.5 - SIDE / 2) * 2**k / ZOOM
    at_um = [c + offset_um for c in centre_um]
    inside = np.outer(*((at >= -0.5) & (at < n - 0.5) for at, n in zip(at_um, slide.shape[:2], strict=True)))
    beyond = ~np.outer(*((at >= -0.5) & (at < n + 15.5) for at, n in zip(at_um, slide.shape[:2], strict=True)))
    index = [np.floor((at - (2**k - 1) / 2) / 2**k + 0.5).astype(int) for at in at_um]
    y, x = (i.clip(0, n - 1) for i, n in zip(index, level.shape[:2], strict=True))
    return level[np.ix_(y, x)] * inside[..., None], inside | beyond


def view(layers: list[dict[str, Any]], k: int, centre_um: tuple[float, float]) -> str:
    """Neuroglancer's state, as a fragment of its URL."""
    micrometres = {"x": [1e-6, "m"], "y": [1e-6, "m"]}
    hidden = dict.fromkeys(("showAxisLines", "showScaleBar", "showDefaultAnnotations"), False)
    place = {"dimensions": micrometres, "position": centre_um[::-1], "crossSectionScale": 2**k / ZOOM}
    return quote(json.dumps({**place, **hidden, "layers": layers, "layout": "xy", "crossSectionBackgroundColor": "#000000"}))


def channel_layer(source: str, channel: int) -> dict[str, Any]:
    """One channel as one primary colour, added to the others."""
    parts = ", ".join("toNormalized(getDataValue())" if i == channel else "0." for i in range(3))
    how = {
        "blend": "additive",
        "opacity": 1,
        "crossSectionRenderScale": ZOOM,
        "shader": f"void main() {{emitRGB(vec3({parts}));}}",
    }
    return {"type": "image", "name": str(channel), "source": source, "localPosition": [channel], **how}


def neuroglancer(browser: Browser, url: str, state: str) -> None:
    """Open Neuroglancer with a state and nothing but the image on its page."""
    browser.open(f"{url}/v/1/index.html#!{state}")
    until = time.monotonic() + PATIENCE_S
    while not browser.evaluate("window.viewer !== undefined") and time.monotonic() < until:
        time.sleep(0.1)
    browser.evaluate("for (const key of ['showUIControls', 'showPanelBorders']) viewer.uiConfiguration[key].value = false")


def edge_um(at_um: float, k: int) -> float:
    """The edge between two pixels of level k next to a place."""
    return (round((at_um + 0.5) / 2**k)) * 2**k - 0.5


@pytest.mark.parametrize(("k", "around_um"), [(0, (127.5, 127.5)), (1, (255.5, 255.5)), *((k, (195, 258)) for k in (2, 3, 4))])
def test_neuroglancer_shows_each_level_in_its_place(
    k: int, around_um: tuple[float, float], packages: Path, browser: Browser, section: SectionManifest, pixels: Any
) -> None:
    """Around a corner of four shards of levels 0 and 1, and the whole of the others; a screen pixel off would be seen."""
    files = package(packages, NEUROGLANCER, NEUROGLANCER_SHA256) / "neuroglancer" / "static" / "client"
    centre_um = edge_um(around_um[0], k), edge_um(around_um[1], k)
    expected, known = seen(levels_of(pixels, section.levels)[k], k, centre_um, pixels)

    def wrong(image: Any) -> Any:
        return (np.abs(image - expected).max(-1) > ROUNDING) & known

    with served({"v/1": files, "store": section.store}, {"events/1": ""}) as url:
        layers = [channel_layer(f"zarr3://{url}/store/", channel) for channel in range(3)]
        neuroglancer(browser, url, view(layers, k, centre_um))
        found = settled(browser, lambda image: not wrong(image).any())
    assert section.levels == 5 and np.ptp(expected) > 50
    assert not wrong(found).any(), f"{wrong(found).mean():.1%} of the pixels of level {k} differ"


def test_neuroglancer_shows_the_tissue_where_it_is(
    packages: Path, browser: Browser, section: SectionManifest, pixels: Any
) -> None:
    files = package(packages, NEUROGLANCER, NEUROGLANCER_SHA256) / "neuroglancer" / "static" / "client"
    k, centre_um = section.tissue_level, (edge_um(150, section.tissue_level), edge_um(150, section.tissue_level))
    expected = seen(open_tissue(section).data[..., None], k, centre_um, pixels)[0] * np.array([0, 255, 0])
    with served({"v/1": files, "store": section.store}, {"events/1": ""}) as url:
        how = {"segments": ["1"], "segmentColors": {"1": "#00ff00"}, "selectedAlpha": 1, "crossSectionRenderScale": ZOOM}
        layer = {"type": "segmentation", "name": "tissue", "source": f"zarr3://{url}/store/labels/tissue/", **how}
        neuroglancer(browser, url, view([layer], k, centre_um))
        found = settled(browser, lambda image: np.array_equal(image, expected))
    assert 0.1 < (expected > 0).any(-1).mean() < 0.9
    assert np.array_equal(found, expected)


GALAXY = """<!doctype html><style>* {{visibility: hidden}} canvas {{visibility: visible}}</style>
<body style="margin: 0"><div id="app" style="position: absolute; width: 100%; height: 100%"
data-incoming="{incoming}"></div>
<script type="importmap">{{"imports":
{{"https://cdn.jsdelivr.net/gh/mozilla/pdf.js@30bd5f0/src/core/jpx.js": "/jpx.js"}}}}</script>
<script type="module" src="/vizarr/index.js"></script>"""


def galaxy_pages() -> dict[str, str]:
    """What this build of Vizarr asks of Galaxy, and its one import from elsewhere (JPEG 2000), which is not needed."""
    incoming = html.escape(json.dumps({"root": "/", "visualization_config": {"dataset_id": "a"}}))
    return {"index.html": GALAXY.format(incoming=incoming), "jpx.js": "export class JpxImage {}"}


def test_vizarr_shows_the_colours_that_the_metadata_name(
    packages: Path, browser: Browser, section: SectionManifest, pixels: Any
) -> None:
    files = package(packages, VIZARR, VIZARR_SHA256) / "package" / "static"
    pages = galaxy_pages()
    with served({"vizarr": files, "store": section.store}, pages) as url:
        slide = {"id": "a", "name": "a", "state": "deferred", "sources": [{"source_uri": f"{url}/store"}]}
        pages["api/datasets/a"] = json.dumps(slide)
        browser.open(f"{url}/index.html")
        found = settled(browser, lambda image: off(image, pixels) < 3)
    assert off(found, pixels) < 3


def off(image: Any, pixels: Any) -> float:
    """The largest difference of mean colours in three boxes of tissue and glass, of the frame that the slide fills on white."""
    ys, xs = np.nonzero((image < 250).any(-1))
    if ys.size == 0:
        return 255.0
    framed = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    places = [(0.46, 0.46), (0.92, 0.92), (0.92, 0.46)]  # in parts of the frame: tissue, glass, glass
    return float(max(np.abs(box_mean(framed, *place) - box_mean(pixels, *place)).max() for place in places))


def box_mean(image: Any, y: float, x: float) -> Any:
    """Mean colour of a box of a tenth of the sides of an image."""
    rows, columns = (slice(round((c - 0.05) * n), round((c + 0.05) * n)) for c, n in zip((y, x), image.shape[:2], strict=True))
    return image[rows, columns].mean((0, 1))
