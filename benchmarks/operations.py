"""Single operations beside the floor of the machine: flow, its consistency, projection, triangulation, linearisation, elimination.

The floor of an operation is the larger of two times: its bytes (every input read once, every output written once) at the bandwidth of a
copy, and its arithmetic at the rate of a matrix product, both measured on the same device in the same run. Inputs are the same every time,
so that what fits a cache stays there. On the CPU an operation runs as the pipeline runs it; on a GPU as Triton and as tensor operations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks import kernels
from vipe_kernels import bundle, cameras
from vipe_kernels.backend import backend_for
from vipe_kernels.flow import dense_flow, forward_backward_error, forward_backward_error_tensors
from vipe_kernels.triangulate import KERNELS_PX, triangulate, triangulate_tensors


@dataclass(frozen=True)
class Size:
    """Of the images, the neighbours of one that is triangulated, and the problem of bundle adjustment."""

    width: int
    height: int
    neighbours: int
    keyframes: int
    points: int
    radius: int


SIZES = {"cpu": Size(640, 480, 4, 40, 300, 3), "cuda": Size(1920, 1080, 8, 200, 768, 5)}


@dataclass(frozen=True)
class Operation:
    """What is timed: how it is computed, how large it is in words, its bytes and arithmetic operations (0: not counted), and the call."""

    name: str
    by: str
    size: str
    bytes: int
    flops: int
    run: Callable[[], object]


@dataclass(frozen=True)
class Device:
    """What a device can do: bytes and operations per second."""

    name: str
    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Row:
    """An operation's median time and floor in milliseconds, and what the floor is made of."""

    name: str
    by: str
    size: str
    milliseconds: float
    floor: float
    limit: str


def seconds(run: Callable[[], object], device: str, budget: float = 0.5) -> float:
    """Median time of a call after a first one that compiles. On a GPU calls are queued in a row, so that its start is not in it."""
    run()
    times: list[float] = []
    if device == "cpu":
        started = time.perf_counter()
        while len(times) < 3 or time.perf_counter() - started < budget:
            before = time.perf_counter()
            run()
            times.append(time.perf_counter() - before)
        return statistics.median(times)
    calls = 10
    for _ in range(9):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls / 1e3)
    return statistics.median(times)


def measured(device: str, megabytes: int = 256, side: int = 1024) -> Device:
    """Bandwidth of a copy and rate of a matrix product: float64 on the CPU and float32 (not TF32) on a GPU, as our kernels there."""
    source = torch.zeros(megabytes << 18, device=device)
    into = torch.empty_like(source)
    copy = seconds(lambda: into.copy_(source), device)
    matrix = torch.rand(side, side, device=device, dtype=torch.float64 if device == "cpu" else torch.float32)
    product = seconds(lambda: torch.mm(matrix, matrix), device)
    name = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    return Device(name, 2 * source.nbytes / copy, 2 * side**3 / product)


def on(device: str, thing: Any) -> Any:
    """A tensor, or a data class with all its tensors, on that device."""
    if isinstance(thing, Tensor):
        return thing.to(device)
    if is_dataclass(thing) and not isinstance(thing, type):
        inside = {f.name: getattr(thing, f.name) for f in fields(thing)}
        return replace(
            thing, **{name: on(device, value) for name, value in inside.items() if isinstance(value, Tensor) or is_dataclass(value)}
        )
    return thing


def images(device: str, size: Size) -> Iterator[Operation]:
    """Operations on pixels."""
    rng = np.random.default_rng(0)
    height, width = size.height, size.width
    pixels, text = height * width, f"{width} x {height}"
    smooth = [cv2.GaussianBlur(rng.normal(0, 6, (height, width, 2)).astype(np.float32), (0, 0), 8) * 4 for _ in range(2)]
    forward, backward = (on(device, torch.from_numpy(flow)) for flow in smooth)
    consistency = 2 * forward.nbytes + 4 * pixels
    if device == "cpu":
        noise = cv2.GaussianBlur(rng.integers(0, 255, (height, width), np.uint8), (0, 0), 1.5)
        shifted = np.roll(noise, 3, 1)
        yield Operation("flow (medium)", "OpenCV", text, 2 * pixels + 8 * pixels, 0, lambda: dense_flow(noise, shifted))
        arrays = forward.numpy(), backward.numpy()
        yield Operation("consistency", "OpenCV", text, consistency, 30 * pixels, lambda: forward_backward_error(*arrays))
    else:
        for by, run in ((backend_for(forward), forward_backward_error), ("tensors", forward_backward_error_tensors)):
            yield Operation("consistency", by, text, consistency, 30 * pixels, lambda run=run: run(forward, backward))  # type: ignore[misc]
    params = torch.tensor([width, width, width / 2, height / 2, -0.1, 0.01, 0.001, 0.001, 0], dtype=torch.float32, device=device)
    points = torch.rand(pixels, 3, device=device) + torch.tensor([-0.5, -0.5, 1.0], device=device)
    project = lambda: cameras.project(points, params, "brown")  # noqa: E731
    yield Operation("projection (brown)", "tensors", text, 20 * pixels, 35 * pixels, project)
    count = size.neighbours
    rays = torch.rand(height, width, 2, device=device) - 0.5
    pose = torch.cat([torch.eye(3), torch.tensor([[0.1], [0.02], [0.0]])], 1).expand(count, 3, 4).to(device)
    seen = rays + 0.1 * torch.rand(count, height, width, 2, device=device)
    weight, focal = torch.rand(count, height, width, device=device), torch.full((height, width), float(width), device=device)
    moved, flops = rays.nbytes + seen.nbytes + weight.nbytes + focal.nbytes + 16 * pixels, 45 * (len(KERNELS_PX) + 2) * count * pixels
    given, text = (rays, seen, pose, weight, focal), f"{text}, {count} neighbours"
    yield Operation("triangulation", backend_for(rays), text, moved, flops, lambda: triangulate(*given))
    if backend_for(rays) == "triton":
        yield Operation("triangulation", "tensors", text, moved, flops, lambda: triangulate_tensors(*given))


def adjustment(device: str, size: Size) -> Iterator[Operation]:
    """Operations of bundle adjustment, with the focal length free."""
    made = kernels.world(size.keyframes, size.points, size.radius)
    problem, state = on(device, made.problem), on(device, made.start)
    edges = problem.edges
    given = (bundle.Chunk(problem, state, bundle.Stretch(edges, slice(0, len(edges.source)))), 4.0)
    sums = bundle.linearise(*given)
    measurements = edges.weight.numel()
    text = f"{size.keyframes} keyframes, {measurements} measurements"
    read = edges.target.nbytes + edges.weight.nbytes + sums.C.nbytes + sums.w.nbytes
    flops = 360 * measurements  # counted in fused.condense, linearisation alone, for a pinhole camera with its focal length free
    sources, width, points = sums.E.shape
    products, written = sources * width * (width + 1) * points, 8 * sources * width * (width + 1)
    yield Operation(
        "linearisation and elimination", backend_for(state.params), text, read + written, flops + products, lambda: bundle.condense(*given)
    )
    if backend_for(state.params) != "triton":
        return
    C, size_text = sums.C + 1.0, f"{sources} of {width} x {points}"
    for by, linearise in (("triton", bundle.linearise), ("tensors", bundle.linearise_tensors)):
        yield Operation("linearisation", by, text, read + sums.E.nbytes, flops, lambda run=linearise: run(*given))  # type: ignore[misc]
    E, w = sums.E, sums.w.to(sums.E.dtype)

    def by_tensors() -> tuple[Tensor, Tensor]:
        EC = E / C.to(E.dtype).unsqueeze(1)
        return EC @ E.transpose(1, 2), EC @ w.unsqueeze(-1)

    for by, eliminate in (("triton", lambda: bundle.eliminate(sums.E, C, sums.w)), ("tensors", by_tensors)):
        yield Operation("elimination", by, size_text, E.nbytes + written, products, eliminate)


def run(device: str, size: Size | None = None) -> tuple[Device, list[Row]]:
    """All operations on a device, `cpu` or `cuda`."""
    machine = measured(device)
    rows = []
    for make in (images, adjustment):
        for operation in make(device, size or SIZES[device]):
            moved, computed = 1e3 * operation.bytes / machine.bandwidth, 1e3 * operation.flops / machine.rate
            taken = 1e3 * seconds(operation.run, device)
            limit = "bandwidth" if moved >= computed else "arithmetic"
            rows.append(Row(operation.name, operation.by, operation.size, taken, max(moved, computed), limit))
    return machine, rows


def table(machine: Device, rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        f"{machine.name}: {machine.bandwidth / 1e9:.1f} GB/s, {machine.rate / 1e9:.0f} GFLOP/s",
        "",
        "| operation | by | size | ms | floor, ms | limited by | times the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.name,
            row.by,
            row.size,
            f"{row.milliseconds:.3g}",
            f"{row.floor:.2g}",
            row.limit,
            f"{row.milliseconds / row.floor:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def record() -> list[dict[str, Any]]:
    """Run on the CPU, and on a GPU where torch has one; print both tables, and return what they say."""
    found = []
    for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
        machine, rows = run(device)
        print("\n" + table(machine, rows), flush=True)
        found.append({"device": asdict(machine), "operations": [asdict(row) for row in rows]})
    if not torch.cuda.is_available():
        print("\nno CUDA device: its operations were left out")
    return found
