"""Kernels for GPUs give what the tensor operations give in float64: interpreted on the CPU, or on the GPU that is there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from engine_worlds import Rig, focal, normal, rig
from vipe_kernels import backend, bundle
from vipe_kernels.bundle import Chunk, Edges, Intrinsic, Schedule, State, Sums
from vipe_kernels.flow import forward_backward_error, forward_backward_error_tensors
from vipe_kernels.triangulate import Triangulation, triangulate_tensors

triton = pytest.importorskip("triton", reason="Triton is not on this platform")
import triton.language as tl  # noqa: E402

from vipe_kernels.gpu import adjustment, consistency, schur, triangulation  # noqa: E402
from vipe_kernels.gpu.measurement import arctan  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RADIAL = (Intrinsic("k1", 0.0, 0.1), Intrinsic("k2", 0.0, 0.1))
K3 = Intrinsic("k3", 0.0, 0.5)
CENTRE = (Intrinsic("cx", 319.5, 10.0), Intrinsic("cy", 239.5, 10.0))


def put(thing: Any) -> Any:
    """A problem, a state or a tensor on the device of the kernels."""
    if isinstance(thing, Tensor):
        return thing.to(DEVICE)
    tensors = {f.name: getattr(thing, f.name) for f in fields(thing)}
    return replace(thing, **{name: put(value) for name, value in tensors.items() if isinstance(value, Tensor | Edges)})


def assert_near(found: Tensor | float, wanted: Tensor | float, share: float) -> None:
    """Everywhere within that share of the largest magnitude wanted."""
    x, y = torch.as_tensor(found).cpu().double(), torch.as_tensor(wanted).cpu().double()
    assert x.shape == y.shape
    assert float((x - y).abs().max()) <= share * float(y.abs().max()), float((x - y).abs().max() / y.abs().max())


def hard(world: Rig, move: float = 0.05) -> tuple[bundle.Problem, State]:
    """Noise, outliers, points that nobody measured (their target is nan), points behind a camera, held depths."""
    world = world.noisy(1.0).with_outliers(0.2)
    edges, state = world.problem.edges, world.perturbed(move)
    weight, target = edges.weight.clone(), edges.target.clone()
    weight[:, ::7] = 0.0
    target[:, ::7] = torch.nan
    translation = state.translation.clone()
    translation[-1, 2] -= 1.5  # the nearest of its points fall behind it
    free_depth = torch.arange(len(world.problem.uv)) != 1
    problem = replace(world.problem, edges=Edges(edges.source, edges.destination, target, weight), free_depth=free_depth)
    return problem, replace(state, translation=translation)


def at_scale(problem: bundle.Problem, state: State, edges: slice) -> tuple[Chunk, float]:
    """What `bundle.linearise` takes, at a robust scale of 3 pixels."""
    return Chunk(problem, state, bundle.Stretch(problem.edges, edges)), 3.0


def both(problem: bundle.Problem, state: State, chunk: slice | None = None) -> tuple[Sums, Sums]:
    """Sums by the kernel, and by tensor operations in float64."""
    chunk = chunk or slice(0, len(problem.edges.source))
    # what was not measured must not count, whatever stands there; tensor operations need a number
    known = replace(problem.edges, target=problem.edges.target.nan_to_num())
    wanted = bundle.linearise_tensors(*at_scale(replace(problem, edges=known), state, chunk))
    return adjustment.linearise(*at_scale(put(problem), put(state), chunk)), wanted


def assert_same_sums(found: Sums, wanted: Sums, share: float = 3e-5) -> None:
    for field in fields(wanted):
        x, y = getattr(found, field.name), getattr(wanted, field.name)
        if torch.as_tensor(y).numel():
            assert_near(x, y, share)


# -- bundle adjustment ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "free", "keyframes"),
    [("pinhole", (focal(), *CENTRE), 3), ("brown", (focal(), *RADIAL, K3), 2), ("fisheye", (focal(), *RADIAL), 2)],
)
def test_sums_of_each_camera_model(model: str, free: tuple[Intrinsic, ...], keyframes: int) -> None:
    found, wanted = both(*hard(rig(model, keyframes=keyframes, points=67, intrinsics=free)))
    assert_same_sums(found, wanted)


def test_the_hard_problem_has_points_behind_a_camera() -> None:
    problem, state = hard(rig(keyframes=3, points=67))
    _, front = bundle.transfer(problem, state)
    assert 0.05 < float((~front).double().mean()) < 0.95


@pytest.mark.parametrize(("model", "free"), [("pinhole", ()), ("brown", (focal(), *RADIAL, K3))], ids=["known", "brown"])
def test_substitution_of_the_depths(model: str, free: tuple[Intrinsic, ...]) -> None:
    problem, state = hard(rig(model, keyframes=3, points=70, intrinsics=free))
    chunk = slice(0, len(problem.edges.source))
    move, shared = 0.01 * normal((len(problem.edges.source), 6), 4), 0.01 * normal((len(free),), 5)
    known = replace(problem.edges, target=problem.edges.target.nan_to_num())
    wanted = bundle.back_substitute_tensors(*at_scale(replace(problem, edges=known), state, chunk), move, shared)
    found = adjustment.back_substitute(*at_scale(put(problem), put(state), chunk), put(move), put(shared))
    assert_near(found, wanted, 3e-5)


@pytest.mark.parametrize("points", [1, 64])
def test_sums_with_the_camera_known(points: int) -> None:
    found, wanted = both(*hard(rig(keyframes=2, points=points)))
    assert_same_sums(found, wanted)


def test_sums_with_rotations_only() -> None:
    problem, state = hard(rig(keyframes=2, points=20, intrinsics=(focal(),)))
    found, wanted = both(replace(problem, rotation_only=True), state)
    assert_same_sums(found, wanted)
    assert float(found.Hjj[:, :3].abs().max()) == float(found.E[:, :3].abs().max()) == 0.0


def test_a_pinhole_sees_up_to_a_right_angle_off_its_axis() -> None:
    world = rig(keyframes=2, points=8, turn=0.0)
    problem = replace(world.problem, uv=world.problem.uv + 150 * world.truth.params[0])
    seen, front = bundle.transfer(problem, world.truth)
    edges = replace(problem.edges, target=seen, weight=front.double())
    found, wanted = both(replace(problem, edges=edges), world.truth)
    assert float(wanted.mass) > 8
    assert float(found.mass) == pytest.approx(float(wanted.mass), rel=0.01)


def test_sums_of_a_later_chunk_whose_sources_have_different_numbers_of_edges() -> None:
    problem, state = hard(rig(keyframes=5, points=9))
    edges = problem.edges
    pairs = [(1, 0), (2, 0), (2, 1), (4, 3)]  # nothing was measured of keyframe 3
    keep = torch.tensor([pair in pairs for pair in zip(edges.source.tolist(), edges.destination.tolist(), strict=True)])
    problem = replace(problem, edges=edges.select(keep))
    found, wanted = both(problem, state, slice(1, 4))
    assert found.E.shape == (3, 18, 9)
    assert_same_sums(found, wanted)


def test_a_step_by_the_kernels_is_the_step_by_tensor_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    world = rig(keyframes=3, points=16, fixed=(0, 1), intrinsics=(focal(),)).noisy(0.5)
    start, step = world.perturbed(0.004), Schedule((4.0,), (1,), tolerance=0.0)
    monkeypatch.setattr(bundle, "backend_for", lambda data: "tensors")
    wanted, _ = bundle.solve(world.problem, start, step)
    monkeypatch.setattr(bundle, "backend_for", lambda data: "triton")
    found, report = bundle.solve(put(world.problem), put(start), step)
    assert report.steps == 1
    for name in ("rotation", "translation", "inverse_depth", "params"):
        assert_near(getattr(found, name), getattr(wanted, name), 1e-4)


@pytest.mark.parametrize(("sources", "width", "points"), [(2, 13, 50), (1, 38, 70), (3, 6, 1)])
def test_products_over_the_eliminated_depths(sources: int, width: int, points: int) -> None:
    E, C, w = normal((sources, width, points), 1), normal((sources, points), 2).square() + 0.1, normal((sources, points), 3)
    matrix, vector = schur.eliminate(put(E.float()), put(C), put(w))
    wanted = bundle.eliminate(E, C, w)
    assert_near(matrix, wanted[0], 1e-6)
    assert_near(vector, wanted[1], 1e-6)


@triton.jit
def angles(r, out):
    tl.store(out + tl.arange(0, 1024), arctan(tl.load(r + tl.arange(0, 1024))))


def test_the_angle_of_a_ray_is_right_to_float32() -> None:
    r = torch.cat([torch.linspace(0.0, 3.0, 1000), torch.logspace(0.5, 8, 24)])
    out = put(torch.zeros(1024))
    angles[(1,)](put(r), out)
    assert float((out.cpu().double() - torch.atan(r.double())).abs().max()) < 2.5e-7


# -- flow and depth ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 9, 13), (17, 31), (1, 1), (3, 1, 7)])
def test_consistency_of_flow(shape: tuple[int, ...]) -> None:
    forward, backward = normal((*shape, 2), 4).float() * 2, normal((*shape, 2), 5).float() * 2
    forward[..., -1, -1, :] = torch.nan
    wanted = forward_backward_error_tensors(forward.double(), backward.double())
    found = consistency.forward_backward_error(put(forward), put(backward)).cpu()
    outside = wanted.isinf()
    assert bool(outside.any())
    assert torch.equal(found.isinf(), outside)
    torch.testing.assert_close(found[~outside].double(), wanted[~outside], rtol=1e-5, atol=1e-5)


def test_tensors_and_arrays_have_the_same_consistency_but_for_rounding_of_positions() -> None:
    y, x = np.meshgrid(np.arange(40), np.arange(60), indexing="ij")
    forward = np.stack([3 + np.sin(x / 9), np.cos(y / 7)], -1).astype(np.float32)
    backward = np.stack([-3 + np.cos(x / 11), np.sin((x + y) / 13)], -1).astype(np.float32)
    by_opencv = forward_backward_error(forward, backward)
    by_tensors = forward_backward_error(torch.from_numpy(forward), torch.from_numpy(backward)).numpy()
    np.testing.assert_array_equal(np.isinf(by_opencv), np.isinf(by_tensors))
    seen = np.isfinite(by_tensors)
    np.testing.assert_allclose(by_opencv[seen], by_tensors[seen], atol=0.01)


@pytest.mark.parametrize(("shape", "neighbours"), [((9, 17), 4), ((1, 1), 1)])
def test_triangulated_pixels(shape: tuple[int, int], neighbours: int) -> None:
    rays, inverse_depth = 0.3 * normal((*shape, 2), 6), normal(shape, 7).abs() + 0.1
    rotation, _ = bundle.exp_se3(0.05 * normal((neighbours, 6), 8))
    relative = torch.cat([rotation, 0.3 * normal((neighbours, 3, 1), 9)], -1)
    ray = torch.cat([rays, torch.ones(*shape, 1, dtype=torch.float64)], -1)
    point = torch.einsum("nij,hwj->nhwi", relative[:, :, :3], ray) + inverse_depth[..., None] * relative[:, None, None, :, 3]
    seen = point[..., :2] / point[..., 2:] + normal((neighbours, *shape, 2), 10) / 300
    weight = (normal((neighbours, *shape), 11) + 0.5).clamp(0, 1)
    if shape != (1, 1):
        weight[:, 2, 3] = 0  # a pixel that no neighbour saw
    given = [x.float() for x in (rays, seen, relative, weight, torch.full(shape, 300.0))]
    wanted = triangulate_tensors(*(x.double() for x in given))
    found = triangulation.triangulate(*(put(x) for x in given))
    for field in fields(Triangulation):
        x, y = getattr(found, field.name).cpu().double(), getattr(wanted, field.name)
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, equal_nan=True, msg=field.name)


# -- the choice ----------------------------------------------------------------------------------------------------------------------------


def data_on(device: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """What the choice looks at of a tensor."""
    return cast(Tensor, SimpleNamespace(device=torch.device(device), dtype=dtype))


def test_kernels_run_on_a_gpu_and_loops_on_the_cpu() -> None:
    assert backend.backend_for(data_on("cuda")) == "triton"
    assert backend.backend_for(data_on("cuda", torch.float32)) == "triton"
    assert backend.backend_for(data_on("cpu")) == "compiled"


def test_tensor_operations_do_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.backend_for(data_on("cpu", torch.float32)) == "tensors"
    assert backend.backend_for(data_on("mps", torch.float32)) == "tensors"
    monkeypatch.setattr(backend, "_triton_is_installed", lambda: False)
    assert backend.backend_for(data_on("cuda")) == "tensors"


# -- code for GPUs, which needs none -------------------------------------------------------------------------------------------------------

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vipe_kernels.gpu import adjustment, consistency, schur, triangulation

def build(kernel, types, constants, warps):
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp64") for name in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": warps})
    print(kernel.fn.__name__, len(built.asm["ptx"]) > 0)

sizes = {"points": "i32", "width": "i32", "height": "i32", "count": "i32", "pixels": "i64"}
shared = {**sizes, "starts": "*i64", "depth_free": "*i1", "scale2": "fp32", "near": "fp32"}
wide = {"MODEL": 2, "CODES": (0,), "N": 1, "ROTATION_ONLY": False, "BLOCK": adjustment.BLOCK}
build(adjustment._linearise, {**shared, **dict.fromkeys(("parts", "E", "C", "w"), "*fp32")}, wide, adjustment.WARPS)
build(adjustment._back_substitute, {**shared, "out": "*fp32"}, wide, adjustment.WARPS)
build(schur._eliminate, {**sizes, "E": "*fp32"}, {"TILE": schur.TILE, "POINTS": schur.POINTS}, schur.WARPS)
flows = dict.fromkeys(("forward", "backward", "error"), "*fp32")
build(consistency._forward_backward_error, {**sizes, **flows}, {"BLOCK": consistency.BLOCK}, consistency.WARPS)
images = dict.fromkeys(("rays", "seen", "weight", "focal_px", "inverse_depth", "std", "residual_px", "support"), "*fp32")
build(triangulation._triangulate, {**sizes, **images}, {**triangulation.CONSTANTS, "BLOCK": triangulation.BLOCK}, triangulation.WARPS)
"""


def test_kernels_compile_for_a_gpu() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split().count("True") == 5
