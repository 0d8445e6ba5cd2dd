"""What ingestion says about stains, what registration sees of them, and sections made to look alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from histomri.core import Image, InputError, Section
from histomri.io.sections import SectionManifest, open_level, open_tissue, read_manifest, registration_image, stain_channels
from histomri.kernels.named_stains import KINDS
from histomri.kernels.stains import angle_deg, optical_density, unit
from histomri.stages import stains
from histomri.stages.ingest import IngestSettings, ingest_section
from histomri.stages.stains import normalised_image, sample_tiles, stain_level, study_look

BACKGROUND = np.array([242.0, 240.0, 244.0])
DAB = unit(np.array(KINDS["hematoxylin-dab"].vectors))
# a laboratory's own colours, 6 and 7 degrees from the table's
OWN = unit(np.array([[0.600, 0.720, 0.350], [0.230, 0.640, 0.740]]))


def field(rng: Any, shape: tuple[int, int], sigma: float) -> Any:
    """Smooth values spread evenly over 0 to 1."""
    small = (shape[0] // 4, shape[1] // 4)
    smooth = cv2.resize(cv2.GaussianBlur(rng.normal(size=small), (0, 0), sigma / 4), shape[::-1])
    return smooth.ravel().argsort().argsort().reshape(shape) / smooth.size


def slide(path: Path, vectors: Any = OWN, strength: float = 1.0, marker: float = 0.15, seed: int = 0) -> tuple[Path, Any]:
    """A slide of an ellipse of tissue in two stains, the second on a share ``marker`` of it; and the amounts (y, x, 2)."""
    rng, shape = np.random.default_rng(seed), (400, 480)
    tissue = cv2.ellipse(np.zeros(shape, np.uint8), (240, 200), (190, 150), 0, 0, 360, 1, -1) > 0
    second = field(rng, shape, 10) < marker
    amount = 0.2 + 0.4 * field(rng, shape, 8)
    c = np.stack([np.where(second, 0, amount), np.where(second, amount, 0)], axis=-1) * tissue[..., None] * strength
    c = cv2.GaussianBlur(c, (0, 0), 1.0)
    pixels = BACKGROUND * 10 ** -(c @ vectors) + rng.normal(size=(*shape, 3)) * 2
    kind: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(path, np.clip(np.rint(pixels), 0, 255).astype(np.uint8), **kind)
    return path, c


def ingest(folder: Path, file: Path, stain: str, name: str = "a", **settings: Any) -> SectionManifest:
    manifest = folder / "ingest" / name / "manifest.json"
    chosen = IngestSettings(chunk_px=256, shard_px=512, smallest_level_px=128, **settings)
    ingest_section(Section(name, file, 0.0, stain=stain), folder / "sections" / f"{name}.ome.zarr", manifest, chosen)
    return read_manifest(manifest)


def test_the_manifest_names_the_stains_with_the_sections_own_colours(tmp_path: Path) -> None:
    file, true = slide(tmp_path / "a.tif")
    found = ingest(tmp_path, file, "H-DAB")
    stains = found.stains
    assert stains is not None and stains.kind == "hematoxylin-dab" and stains.names == ("hematoxylin", "dab")
    assert stains.origin == ("image", "image") and min(stains.confidence) > 0.1
    assert (angle_deg(np.array(stains.vectors), OWN) < 2).all()
    held = true[true[..., 0] > 0.02][:, 0]
    assert stains.strengths[0] == pytest.approx(np.percentile(held, 75), rel=0.1)
    assert found.flags == () and found.registration_channel == "hematoxylin"


def test_separated_channels_hold_what_was_put_there(tmp_path: Path) -> None:
    file, true = slide(tmp_path / "a.tif")
    found = ingest(tmp_path, file, "dab", stains={"dab": {"kind": "hematoxylin-dab"}})
    channels = stain_channels(open_level(found).data[...], found)
    assert channels.shape == true.shape and (channels >= 0).all()
    for i in (0, 1):
        assert np.corrcoef(channels[..., i].ravel(), true[..., i].ravel())[0, 1] > 0.97
    assert np.abs(channels - true).mean() < 0.02


def test_given_vectors_are_used_as_they_are(tmp_path: Path) -> None:
    entry = {"vectors": [[2.0, 2.2, 0.9], [0.3, 0.6, 0.8]], "names": ["blue", "brown"]}
    found = ingest(tmp_path, slide(tmp_path / "a.tif")[0], "x", stains={"x": entry}).stains
    assert found is not None and found.kind == "given" and found.names == ("blue", "brown")
    assert found.origin == ("config", "config") and np.allclose(found.vectors, unit(np.array(entry["vectors"])), atol=1e-5)


def test_a_stain_that_nobody_knows_is_measured_by_channel(tmp_path: Path) -> None:
    found = ingest(tmp_path, slide(tmp_path / "a.tif")[0], "Iba1").stains
    assert found is not None and found.kind is None and found.names == ("red", "green", "blue")
    assert np.array_equal(found.vectors, np.eye(3))


def test_stains_that_cannot_be_told_apart_keep_their_usual_colours(tmp_path: Path) -> None:
    found = ingest(tmp_path, slide(tmp_path / "a.tif", marker=0.0)[0], "hdab")
    assert found.stains is not None and found.stains.origin == ("named", "named") and found.stains.confidence == (0.0, 0.0)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"vectors": [[1, 1, 1], [2, 2, 2]]}, r"ingest\.stains\.he.*not independent"),
        ({"vectors": [[0, 0, 0]]}, r"not independent"),
        ({"vectors": [[1, 0, 0], [0, 1, 0]], "names": ["one"]}, r"2 vectors have 1 names"),
    ],
)
def test_vectors_that_cannot_work_are_refused_with_the_key(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        IngestSettings(stains={"he": entry})


@pytest.mark.parametrize(
    ("wanted", "entry", "channel"),
    [("mean", {}, "mean"), ("auto", {}, "hematoxylin"), ("DAB", {}, "dab"), ("green", {}, "green"),
     ("mean", {"registration_channel": "dab"}, "dab")],
)  # fmt: skip
def test_registration_sees_the_channel_that_was_chosen(tmp_path: Path, wanted: str, entry: dict[str, Any], channel: str) -> None:
    file, true = slide(tmp_path / "a.tif")
    found = ingest(tmp_path, file, "hdab", registration_channel=wanted, stains={"hdab": entry})
    assert found.registration_channel == channel and found.flags == ()
    image, mask = registration_image(found, 0.0005)
    assert image.data.dtype == np.float32 and image.data.shape == mask.data.shape and (image.data >= 0).all()
    expected = {"hematoxylin": true[..., 0], "dab": true[..., 1], "green": true @ OWN[:, 1]}.get(channel, true @ OWN.mean(axis=1))
    assert np.corrcoef(image.data.ravel(), expected.ravel())[0, 1] > 0.97
    assert float(np.median(image.data[~mask.data])) < 0.02, "the background is 0"


def test_a_section_without_the_channel_gets_the_mean_and_a_flag(tmp_path: Path) -> None:
    found = ingest(tmp_path, slide(tmp_path / "a.tif")[0], "nissl", registration_channel="DAPI")
    assert found.registration_channel == "mean" and len(found.flags) == 1
    assert found.flags[0].startswith("has no registration_channel 'DAPI' (it has nissl, red, green, blue)")


def test_fluorescence_shows_its_nuclei_when_asked_to_choose(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (320, 320)
    tissue = cv2.circle(np.zeros(shape, np.uint8), (160, 160), 90, 1, -1).astype(float)
    planes = np.stack([200 + tissue * 3000 * field(rng, shape, s) for s in (6, 12)]).astype(np.uint16)
    names = {"axes": "CYX", "Channel": {"Name": ["GFP", "DAPI"]}, "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    tifffile.imwrite(tmp_path / "f.ome.tif", planes, metadata=names, photometric="minisblack", tile=(64, 64))
    found = ingest(tmp_path, tmp_path / "f.ome.tif", "neurons", registration_channel="auto")
    assert found.inverted and found.registration_channel == "DAPI"
    image, _ = registration_image(found, 0.001)
    assert np.corrcoef(image.data.ravel(), planes[1].ravel())[0, 1] > 0.99
    assert found.stains is not None and found.stains.names == ("GFP", "DAPI")


def fluorescence(path: Path, names: list[str], strength: float) -> tuple[Any, Any, Any]:
    """A slide of three 16-bit channels of 1 um: a rare marker, nuclei of 8 x 6 um that bleed into it, cytoplasm; with glow that
    grows to the right, shot noise, and the camera's 110. The tissue (bool), how much nucleus there is in each pixel, and the
    nuclei's places (n, 2) in pixels.
    """
    rng, shape = np.random.default_rng(0), (600, 720)
    tissue = cv2.ellipse(np.zeros(shape, np.uint8), (360, 300), (230, 180), 20, 0, 360, 1, -1).astype(np.float32)
    nuclei, taken, places = np.zeros(shape, np.float32), np.zeros(shape, np.uint8), []
    for y, x in np.argwhere((rng.random(shape) < 0.012) & (tissue > 0)).tolist():
        if not taken[y, x]:
            places.append((y, x))
            cv2.circle(taken, (x, y), 9, 1, -1)
            cv2.ellipse(nuclei, (x, y), (4, 3), float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.6, 1.4)), -1)
    nuclei = cv2.GaussianBlur(nuclei, (0, 0), 0.8)
    cells, marker = tissue * field(rng, shape, 14), tissue * (field(rng, shape, 10) < 0.12)
    light = (2500 * marker + 150 * nuclei + 80 * tissue, 1500 * nuclei + 120 * cells + 60 * tissue, 900 * cells + 100 * tissue)
    glow = 110 + 30 * np.linspace(0, 1, shape[1])
    planes = np.stack([rng.poisson(strength * plane + glow) for plane in light]).astype(np.uint16)
    written = {"axes": "CYX", "Channel": {"Name": names}, "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    tifffile.imwrite(path, planes, metadata=written, photometric="minisblack", tile=(64, 64))
    return tissue > 0, nuclei, np.array(places)


def maxima(image: Any, where: Any) -> Any:
    """Places (m, 2) of the bright spots of an image inside a mask."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1.5)
    middle, high = np.median(smooth[where]), np.percentile(smooth[where], 99)
    is_peak = (smooth == cv2.dilate(smooth, np.ones((9, 9)))) & where & (smooth > middle + 0.25 * (high - middle))
    return np.argwhere(is_peak)


@pytest.mark.parametrize(("nuclear", "strength"), [("DAPI", 1.0), ("Hoechst 33342", 0.1)])
def test_registration_sees_the_nuclei_of_a_fluorescence_slide_and_the_mask_its_tissue_on_black(
    tmp_path: Path, nuclear: str, strength: float
) -> None:
    tissue, nuclei, places = fluorescence(tmp_path / "f.ome.tif", ["FITC", nuclear, "Cy5"], strength)
    found = ingest(tmp_path, tmp_path / "f.ome.tif", "neurons", registration_channel="auto")
    assert found.status == "ok" and found.inverted and found.registration_channel == nuclear
    image, mask = registration_image(found, 0.001)
    mine = np.asarray(mask.data)
    assert 2 * (mine & tissue).sum() / (mine.sum() + tissue.sum()) > 0.94
    # the mean of the channels correlates by 0.71, and shows 3 of 4 nuclei
    assert np.corrcoef(image.data.ravel(), nuclei.ravel())[0, 1] > 0.96
    apart = np.linalg.norm(maxima(image.data, mine)[:, None] - places[None], axis=-1)
    assert (apart.min(axis=0) <= 4).mean() > 0.93 and (apart.min(axis=1) <= 4).mean() > 0.99
    assert abs(float(np.median(image.data[~tissue]))) < 0.02 * float(np.percentile(image.data[tissue], 99))


def median_density(image: Image, record: SectionManifest, background: Any) -> Any:
    inside = open_tissue(record, 0)
    small = cv2.resize(image.data[...], inside.grid.shape[::-1], interpolation=cv2.INTER_AREA)
    return np.median(optical_density(small[np.asarray(inside.data)], tuple(background)), axis=0)


def test_unequal_sections_look_alike_and_stored_pixels_stay(tmp_path: Path) -> None:
    """The same tissue stained at 0.6 to 1.5 times the strength, in two batches with colours 5 degrees apart."""
    other = unit(OWN + np.array([[0.05, -0.05, 0.02], [0.05, -0.03, -0.05]]))
    records = []
    for i, strength in enumerate((0.6, 0.8, 1.0, 1.2, 1.5)):
        file, _ = slide(tmp_path / f"{i}.tif", other if i % 2 else OWN, strength)
        records.append(ingest(tmp_path, file, "hdab", f"s{i}"))
    stored = [open_level(r).data[...] for r in records]
    look = study_look(records)
    assert look is not None
    before = np.array([median_density(open_level(r), r, r.background) for r in records])
    after = np.array([median_density(normalised_image(open_level(r), r, look), r, look.background) for r in records])
    spread = [float((m.std(axis=0) / m.mean(axis=0)).max()) for m in (before, after)]
    assert spread[0] > 0.25 and spread[1] < 0.05
    assert all(np.array_equal(open_level(r).data[...], pixels) for r, pixels in zip(records, stored, strict=True))


def test_one_section_more_or_an_odd_one_moves_the_common_look_little(tmp_path: Path) -> None:
    base = ingest(tmp_path, slide(tmp_path / "a.tif")[0], "hdab")
    assert base.stains is not None
    strengths = (0.30, 0.31, 0.32, 0.33, 0.34, 3.0)
    records = [replace(base, stains=replace(base.stains, strengths=(s, 0.2))) for s in strengths]
    few, all_of_them = study_look(records[:5]), study_look(records)
    assert few is not None and all_of_them is not None
    assert all_of_them.strengths[0] == pytest.approx(few.strengths[0], rel=0.02)


def test_sections_of_other_stains_or_without_any_are_left_alone(tmp_path: Path) -> None:
    first = ingest(tmp_path, slide(tmp_path / "a.tif")[0], "hdab")
    other = ingest(tmp_path, slide(tmp_path / "b.tif")[0], "nissl", "b")
    look = study_look([first])
    image = open_level(other)
    assert normalised_image(image, other, look) is image
    unknown = replace(first, stains=None)
    assert study_look([unknown]) is None and normalised_image(image, unknown, look) is image


def test_boxes_of_normalised_pixels_are_those_of_the_whole(tmp_path: Path) -> None:
    record = ingest(tmp_path, slide(tmp_path / "a.tif")[0], "hdab")
    look = study_look([record])
    assert look is not None
    image = normalised_image(open_level(record), record, replace(look, strengths=2 * look.strengths))
    whole = image.data[...]
    assert np.array_equal(image.data[100:230, 31:200], whole[100:230, 31:200]) and whole.dtype == np.uint8


def test_the_sample_is_tissue_and_small_enough(tmp_path: Path) -> None:
    record = ingest(tmp_path, slide(tmp_path / "a.tif")[0], "hdab")
    level = stain_level(record)
    assert record.level_grid(level).spacing_mm.max() <= 0.0021
    huge = replace(record, shape=(80000, 100000), pixel_size_mm=(0.00025, 0.00025), levels=9, tissue_fraction=0.5)
    assert stain_level(huge) == 3
    assert 1 <= len(sample_tiles(record, record.level_grid(level))) <= 24


def test_of_many_pixels_the_sample_is_thinned_and_all_over_the_tissue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ingest(tmp_path, slide(tmp_path / "a.tif")[0], "hdab")
    every = stains.tissue_pixels(record)
    monkeypatch.setattr(stains, "MAX_PIXELS", len(every) // 3)
    thin = stains.tissue_pixels(record, threads=3)
    assert np.array_equal(thin, every[::4])


def test_a_real_section_is_separated_into_nuclei_and_the_rest(shared_data: Path, tmp_path: Path) -> None:
    """H&E: what hematoxylin's channel shows most is bluer than what eosin's shows most, and they are not the same pixels."""
    file = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    found = ingest(tmp_path, file, "H&E")
    assert found.stains is not None and found.stains.origin == ("image", "image")
    pixels = open_level(found, 1).data[...]
    channels = stain_channels(pixels, found)
    most = [channels[..., i] > np.percentile(channels[..., i], 98) for i in (0, 1)]
    blue, pink = (pixels[m & ~n].mean(axis=0) for m, n in (most, most[::-1]))
    assert blue[2] - blue[0] > 20 and pink[0] - pink[2] > 0, (blue, pink)
