"""The engine on a GPU, emulated where there is none: the CPU's result, and what it says where the GPU's memory runs out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from emulated_gpu import COMPILER, emulated_gpu
from scenes import BLIND, Scene, bent_scene, linear_scene

from histomri import backend
from histomri.registration.engine import Fit, Options, fit

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to run the CUDA sources with on the CPU")


def found(scene: Scene, model: str, metric: str, device: str, **more: object) -> Fit:
    # the force of nmi jumps from bin to bin: on so few pixels every step makes a difference of the last bit 100 times larger
    steps = 60 if model == "affine" else 2 if metric == "nmi" else 4
    options = Options(iterations=(steps,), window_px=1.5, device=device)
    return fit(scene.fixed, scene.moving, (model,), metric, levels=(2,), options=options, **more)  # type: ignore[arg-type]


def apart_px(one: Fit, other: Fit, scene: Scene) -> float:
    points = scene.fixed.grid.points().reshape(-1, scene.fixed.grid.ndim)
    off = np.linalg.norm(one.transform.map(points) - other.transform.map(points), axis=1)
    return float(off.max() / scene.fixed.grid.spacing_mm[0])


@pytest.mark.parametrize("metric", ["ssd", "ncc", "lncc", "cr", "nmi", "ngf", "mind"])
def test_a_deformation_on_the_gpu_is_that_of_the_cpu(metric: str) -> None:
    scene = bent_scene(2, metric in BLIND)
    on_cpu = found(scene, "diffeomorphic", metric, "cpu")
    with emulated_gpu() as memory:
        on_gpu = found(scene, "diffeomorphic", metric, "auto")
        assert memory.most > 10_000
    assert on_gpu.value_after == pytest.approx(on_cpu.value_after, rel=1e-3, abs=1e-5)
    assert apart_px(on_cpu, on_gpu, scene) < 0.02
    assert on_gpu.notes == ()
    assert isinstance(on_gpu.field.values, np.ndarray)  # type: ignore[union-attr]


@pytest.mark.parametrize(("model", "metric"), [("diffeomorphic", "mind"), ("diffeomorphic", "lncc"), ("affine", "ncc")])
def test_volumes_on_the_gpu_are_registered_as_on_the_cpu(model: str, metric: str) -> None:
    scene = bent_scene(3) if model == "diffeomorphic" else linear_scene("affine", 3)
    on_cpu = found(scene, model, metric, "cpu")
    with emulated_gpu():
        on_gpu = found(scene, model, metric, "gpu")
    assert apart_px(on_cpu, on_gpu, scene) < 0.02


@pytest.mark.parametrize(
    ("model", "metric", "more", "said"),
    [
        ("affine", "ncc", {}, None),
        ("affine", "ssd", {}, "normal equations"),
        ("bspline", "ssd", {}, "fields of bspline"),
        ("velocity", "ncc", {}, None),
        ("diffeomorphic", "ncc", {"optimiser": "lbfgs"}, "under lbfgs"),
        ("diffeomorphic", "ncc", {"optimiser": "adam"}, None),
        ("diffeomorphic", "ncc", {"regularisation": {"bending": 0.01}}, "penalties"),
    ],
)
def test_what_stays_on_the_cpu_is_said(model: str, metric: str, more: dict[str, object], said: str | None) -> None:
    scene = bent_scene(2) if model != "affine" else linear_scene("affine", 2)
    on_cpu = found(scene, model, metric, "cpu", **more)
    with emulated_gpu():
        on_gpu = found(scene, model, metric, "gpu", **more)
    assert apart_px(on_cpu, on_gpu, scene) < 0.05
    assert (said is None and on_gpu.notes == ()) or any(said in note for note in on_gpu.notes)  # type: ignore[operator]
    assert on_cpu.notes == ()


@pytest.mark.parametrize("metric", ["ssd", "lncc", "nmi"])
def test_where_the_memory_runs_out_parts_give_the_same_and_it_is_said(metric: str) -> None:
    scene = bent_scene(2, metric in BLIND)
    on_cpu = found(scene, "diffeomorphic", metric, "cpu")
    with emulated_gpu() as memory:
        found(scene, "diffeomorphic", metric, "gpu")
        whole = memory.most
    with emulated_gpu(limit=0.7 * whole) as memory:
        in_parts = found(scene, "diffeomorphic", metric, "gpu")
        assert 0 < memory.most <= 0.7 * whole
    assert any("memory ran out: the images were sent there in parts of" in note for note in in_parts.notes)
    assert not any("evaluated on the CPU" in note for note in in_parts.notes)
    assert apart_px(on_cpu, in_parts, scene) < 0.02


def test_a_gpu_without_any_memory_leaves_it_to_the_cpu_and_says_so() -> None:
    scene = bent_scene(2)
    on_cpu = found(scene, "diffeomorphic", "ncc", "cpu")
    with emulated_gpu(limit=500):
        there = found(scene, "diffeomorphic", "ncc", "gpu")
    assert any("evaluated on the CPU" in note for note in there.notes)
    assert there.value_after == on_cpu.value_after


@pytest.mark.gpu
@pytest.mark.skipif(not backend.has_gpu(), reason="no GPU: CuPy is missing or finds no device")
@pytest.mark.parametrize(
    ("model", "metric"), [("diffeomorphic", "lncc"), ("diffeomorphic", "mind"), ("velocity", "ncc"), ("affine", "ncc")]
)
def test_a_real_gpu_gives_what_the_cpu_gives(model: str, metric: str) -> None:
    scene = linear_scene("affine", 3) if model == "affine" else bent_scene(3)
    on_cpu, on_gpu = (found(scene, model, metric, device) for device in ("cpu", "gpu"))
    assert apart_px(on_cpu, on_gpu, scene) < 0.02


def test_other_errors_are_no_lack_of_memory() -> None:
    with emulated_gpu():
        assert backend.out_of_memory() == (backend.cupy.cuda.memory.OutOfMemoryError,)
        with pytest.raises(ZeroDivisionError):
            try:
                raise ZeroDivisionError
            except backend.out_of_memory():
                pass
