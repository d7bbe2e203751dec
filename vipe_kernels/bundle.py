"""Bundle adjustment over keyframe cameras, per-point inverse depth and shared intrinsics.

    minimise  sum_{edges i->j} sum_p  w_ijp * rho( project(R_ij ray_i(p) + t_ij d_ip) - target_ijp )  +  priors

Cameras are world-to-camera, perturbed from the left, T <- Exp([tau, phi]) T; a point is a pixel of its own keyframe with one inverse depth
(1 / z), so the depth block of the Hessian is diagonal and is eliminated (Schur complement; Triggs et al. 2000, section 6):
S = H - E C^-1 E^T.
With J_j the Jacobian of the target camera, that of the source camera is -J_j Ad(T_ij), so one 6x6 block per edge gives all four.
rho is Geman-McClure with a scale that shrinks from stage to stage (graduated non-convexity, Blake and Zisserman 1987).
No Python loop runs over edges or points. Memory is that of the measurements: whole source keyframes are handled in chunks, S is
block-sparse (`reduced`), and E is not kept but formed again when the depths are substituted back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vipe_kernels import cameras, fused, parallel
from vipe_kernels.backend import backend_for
from vipe_kernels.reduced import Pattern, Reduced, order_in_source, places

SLOTS: dict[str, tuple[int, ...]] = {"focal": (0, 1), "cx": (2,), "cy": (3,), "k1": (4,), "k2": (5,)}
"""Entries of the 9-vector of parameters that an intrinsic moves."""
_CHUNK_ROWS = 150_000
_GPU_CHUNK_ROWS = 2_000_000
"""Measurements handled at a time on a GPU: enough to fill it, in a few hundred megabytes."""


@dataclass(frozen=True)
class Intrinsic:
    """One free intrinsic direction: which entries of the 9-vector move, its prior mean and prior standard deviation (inf: none).

    `focal` moves log fx and log fy together (prior on log fx); `cx`, `cy` (pixels), `k1`, `k2` are additive.
    """

    name: str
    prior_mean: float
    prior_std: float


@dataclass(frozen=True)
class State:
    """Unknowns: rotation (K, 3, 3), translation (K, 3) world-to-camera; inverse_depth (K, P); params (9,). All float64."""

    rotation: Tensor
    translation: Tensor
    inverse_depth: Tensor
    params: Tensor


@dataclass(frozen=True)
class Edges:
    """Measurements: point p of keyframe source[e] was seen at target[e, p] in keyframe destination[e].

    source, destination (E,) int64, sorted by source; target (E, P, 2) pixels; weight (E, P) >= 0, where 0 means not seen.
    """

    source: Tensor
    destination: Tensor
    target: Tensor
    weight: Tensor

    @cached_property
    def host_source(self) -> NDArray[np.int64]:
        """`source` on the host, copied from its device once."""
        return self.source.cpu().numpy()

    def span(self, chunk: slice) -> tuple[int, int]:
        """The first source of a run of edges, and one past the last."""
        sources = self.host_source[chunk]
        return int(sources[0]), int(sources[-1]) + 1

    @classmethod
    def of(cls, source: Tensor, destination: Tensor, target: Tensor, weight: Tensor) -> Edges:
        order = torch.argsort(source, stable=True)
        return cls(source[order], destination[order], target[order], weight[order])

    def select(self, keep: Tensor) -> Edges:
        """The edges where keep (E,) is True."""
        return Edges(self.source[keep], self.destination[keep], self.target[keep], self.weight[keep])


@dataclass(frozen=True)
class Problem:
    """What stays fixed during a solve.

    uv (K, P, 2) pixel of every point; free_pose (K,) bool; free_depth (K,) bool; rotation_only: the
    translations of free poses (all zero) stay.
    depth_prior: precision (1 / px^2 per unit of squared relative change) that keeps unobserved inverse depths near where they are.
    """

    model: str
    uv: Tensor
    edges: Edges
    free_pose: Tensor
    free_depth: Tensor
    intrinsics: tuple[Intrinsic, ...] = ()
    rotation_only: bool = False
    depth_prior: float = 1e-3
    near: float = 0.05


@dataclass(frozen=True)
class Schedule:
    """Robust scales in pixels, largest first, with the most Gauss-Newton steps spent at each, and the relative cost
    change that ends one early."""

    scales: tuple[float, ...]
    steps: tuple[int, ...]
    tolerance: float = 1e-3
    damping: float = 1e-4


@dataclass
class Report:
    """cost: robust cost at the last scale; steps; weight sum of the measurements that counted; trace of (scale, cost)."""

    cost: float = float("nan")
    steps: int = 0
    mass: float = 0.0
    trace: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _System:
    """Normal equations after elimination at one state and robust scale. c_inverse, w (K, P): of the inverse depths."""

    reduced: Reduced
    cost: float
    mass: float
    c_inverse: Tensor
    w: Tensor
    scale: float


@dataclass(frozen=True)
class _Plan:
    """What of a problem depends on neither state nor scale: the chunks of edges, and where in the reduced system they add."""

    chunks: list[slice]
    pattern: Pattern
    free: Tensor

    @classmethod
    def of(cls, problem: Problem) -> _Plan:
        chunks, device = _chunks(problem), problem.uv.device
        free = torch.nonzero(problem.free_pose).ravel()
        slot = torch.full((len(problem.uv),), len(free), dtype=torch.long, device=device)
        slot[free] = torch.arange(len(free), device=device)
        return cls(chunks, Pattern.of(len(free), places(problem.edges.source, problem.edges.destination, chunks, slot, len(free))), free)


def relative(rotation: Tensor, translation: Tensor, source: Tensor, destination: Tensor) -> tuple[Tensor, Tensor]:
    """World-to-camera poses -> R_ij (E, 3, 3), t_ij (E, 3) that take source-camera points to the destination camera."""
    r = rotation[destination] @ rotation[source].transpose(-1, -2)
    return r, translation[destination] - (r @ translation[source].unsqueeze(-1)).squeeze(-1)


def adjoint(r: Tensor, t: Tensor) -> Tensor:
    """Ad of (r, t) for tangents [tau, phi]: (..., 6, 6)."""
    out = torch.zeros(*r.shape[:-2], 6, 6, dtype=r.dtype, device=r.device)
    out[..., :3, :3] = r
    out[..., 3:, 3:] = r
    out[..., :3, 3:] = skew(t) @ r
    return out


def skew(v: Tensor) -> Tensor:
    """Cross-product matrices (..., 3, 3) of v (..., 3)."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape[:-1], 3, 3)


def exp_se3(xi: Tensor) -> tuple[Tensor, Tensor]:
    """Exponential of [tau, phi] (..., 6): rotation (..., 3, 3), translation (..., 3)."""
    generator = torch.zeros(*xi.shape[:-1], 4, 4, dtype=xi.dtype, device=xi.device)
    generator[..., :3, :3] = skew(xi[..., 3:])
    generator[..., :3, 3] = xi[..., :3]
    matrix = torch.linalg.matrix_exp(generator)
    return matrix[..., :3, :3], matrix[..., :3, 3]


def transfer(problem: Problem, state: State, edges: Edges | None = None) -> tuple[Tensor, Tensor]:
    """Where each measured point should appear: (E, P, 2) pixels and (E, P) bool, in front of the destination camera."""
    edges = edges or problem.edges
    first, last = edges.span(slice(0, len(edges.source))) if len(edges.source) else (0, 0)
    rays = cameras.unproject(problem.uv[first:last], state.params, problem.model)
    r, t = relative(state.rotation, state.translation, edges.source, edges.destination)
    points = rays[edges.source - first] @ r.transpose(-1, -2) + t[:, None] * state.inverse_depth[edges.source].unsqueeze(-1)
    return cameras.project(points, state.params, problem.model), points[..., 2] > problem.near


def residuals(problem: Problem, state: State) -> Tensor:
    """Distance in pixels between measured and predicted position, (E, P) of the type of the weights; nan where not measured or behind
    the camera."""
    out = torch.full_like(problem.edges.weight, float("nan"))
    for chunk in _chunks(problem):
        edges = Edges(*(getattr(problem.edges, name)[chunk] for name in ("source", "destination", "target", "weight")))
        uv, front = transfer(problem, state, edges)
        distance = (edges.target - uv).norm(dim=-1)
        out[chunk] = torch.where(front & (edges.weight > 0), distance, torch.nan).to(out.dtype)
    return out


def _rows_at_a_time(problem: Problem) -> int:
    """Points that tensors of one pass may hold."""
    return _GPU_CHUNK_ROWS if problem.edges.source.is_cuda else _CHUNK_ROWS


def _chunks(problem: Problem) -> list[slice]:
    """Runs of edges that hold whole source keyframes and about as many points as are handled at a time."""
    limit = _rows_at_a_time(problem)
    source, points = problem.edges.source, max(1, problem.edges.weight.shape[1])
    if len(source) == 0:
        return []
    counts = torch.unique_consecutive(source, return_counts=True)[1].tolist()
    chunks, start, size = [], 0, 0
    for count in counts:
        if size and (size + count) * points > limit:
            chunks.append(slice(start, start + size))
            start, size = start + size, 0
        size += count
    return [*chunks, slice(start, start + size)]


def _intrinsic_columns(problem: Problem) -> list[int]:
    """Slots of the parameter vector that the free intrinsics move."""
    return [slot for free in problem.intrinsics for slot in SLOTS[free.name]]


def _intrinsic_basis(problem: Problem, params: Tensor) -> Tensor:
    """d params[columns] / d free intrinsics, (columns, n)."""
    columns = _intrinsic_columns(problem)
    basis = torch.zeros(len(columns), len(problem.intrinsics), dtype=params.dtype, device=params.device)
    for position, free in enumerate(problem.intrinsics):
        for slot in SLOTS[free.name]:
            basis[columns.index(slot), position] = params[slot] if free.name == "focal" else 1.0
    return basis


def _intrinsic_values(problem: Problem, params: Tensor) -> Tensor:
    return torch.stack([torch.log(params[0]) if f.name == "focal" else params[SLOTS[f.name][0]] for f in problem.intrinsics])


@dataclass(frozen=True)
class Sums:
    """Sums over the measurements of one chunk of S source keyframes and their E edges, in the tangent of the destination camera.

    Hjj (E, 6, 6), gj (E, 6); with the n free intrinsics Hjk (E, 6, n), Hkk (n, n), gk (n,); with the inverse depths E (S, width, P), rows
    [source pose, each destination pose, intrinsics], C (S, P) and w (S, P); robust cost and mass, which may wait on the device.
    """

    Hjj: Tensor
    gj: Tensor
    Hjk: Tensor
    Hkk: Tensor
    gk: Tensor
    E: Tensor
    C: Tensor
    w: Tensor
    cost: float | Tensor
    mass: float | Tensor


def linearise(problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float) -> Sums:
    """Linearise the measurements of a chunk. r, t: `relative` of its edges; rays, d_ray: `_rays` of all keyframes."""
    chosen = backend_for(state.params)
    if chosen == "triton":
        from vipe_kernels.gpu import adjustment

        return adjustment.linearise(problem, state, chunk, r, t, rays, d_ray, scale)
    return (linearise_compiled if chosen == "compiled" else linearise_tensors)(problem, state, chunk, r, t, rays, d_ray, scale)


def eliminate(E: Tensor, C: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """E C^-1 E^T (S, W, W) and E C^-1 w (S, W) of S sources: E (S, W, P); C > 0 and w (S, P)."""
    if backend_for(E) == "triton":
        from vipe_kernels.gpu import schur

        return schur.eliminate(E, C, w)
    matrix, vector = E.new_empty(len(E), E.shape[1], E.shape[1]), E.new_empty(len(E), E.shape[1], 1)

    def task(first: int, last: int) -> None:
        part = E[first:last]
        scaled = part / C[first:last].unsqueeze(1)
        torch.bmm(scaled, part.transpose(1, 2), out=matrix[first:last])
        torch.bmm(scaled, w[first:last].unsqueeze(-1), out=vector[first:last])

    if E.device.type == "cpu":
        parallel.spans(task, len(E), E.numel())
    else:
        task(0, len(E))
    return matrix, vector.squeeze(-1)


def back_substitute(
    problem: Problem,
    state: State,
    chunk: slice,
    r: Tensor,
    t: Tensor,
    rays: Tensor,
    d_ray: Tensor,
    scale: float,
    move: Tensor,
    shared: Tensor,
) -> Tensor:
    """E^T dx of the source keyframes of a chunk, (S, P). move (E, 6): of each destination camera relative to its source, in its tangent;
    shared (n,): of the free intrinsics."""
    chosen = backend_for(state.params)
    if chosen == "triton":
        from vipe_kernels.gpu import adjustment

        return adjustment.back_substitute(problem, state, chunk, r, t, rays, d_ray, scale, move, shared)
    how = back_substitute_compiled if chosen == "compiled" else back_substitute_tensors
    return how(problem, state, chunk, r, t, rays, d_ray, scale, move, shared)


def _width(problem: Problem, src: Tensor) -> int:
    """Rows of the depth-to-rest block: own pose, the most destinations any source has, intrinsics."""
    return 6 * (int(torch.unique_consecutive(src, return_counts=True)[1].max()) + 1) + len(problem.intrinsics)


def _compiled_camera(problem: Problem, state: State) -> tuple[NDArray[np.float64], int, NDArray[np.int64]]:
    """Parameters, code of the model and codes of the free intrinsics, as the loops of `fused` take them."""
    codes = np.array([fused.INTRINSIC_CODES[f.name] for f in problem.intrinsics], np.int64)
    return state.params.numpy(), fused.MODEL_CODES[problem.model], codes


def _compiled_arguments(problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor) -> tuple[Any, ...]:
    """What both loops of `fused` over a chunk take: measurements and cameras."""
    src = problem.edges.source[chunk]
    first = int(src[0])
    starts = np.searchsorted(src.numpy(), first + np.arange(int(src[-1]) - first + 2))
    params, code, codes = _compiled_camera(problem, state)
    measured = (problem.edges.target[chunk].numpy(), problem.edges.weight[chunk].numpy())
    tensors = (x.contiguous().numpy() for x in (r, t, rays, state.inverse_depth, problem.free_depth))
    return (starts, first, *tensors, *measured, params, code, fused.view_limit(params, problem.model), codes, d_ray.numpy())


def back_substitute_compiled(
    problem: Problem,
    state: State,
    chunk: slice,
    r: Tensor,
    t: Tensor,
    rays: Tensor,
    d_ray: Tensor,
    scale: float,
    move: Tensor,
    shared: Tensor,
) -> Tensor:
    """`back_substitute` by the loops of `fused`."""
    common = _compiled_arguments(problem, state, chunk, r, t, rays, d_ray)
    out = np.zeros((len(common[0]) - 1, problem.uv.shape[1]))
    moves, n = (move.contiguous().numpy(), shared.contiguous().numpy()), problem.edges.weight[chunk].numel()

    def task(a: int, b: int) -> None:
        fused.back_substitute(a, b, *common, scale * scale, problem.near, *moves, out)

    parallel.spans(task, len(out), n)
    return torch.from_numpy(out)


def back_substitute_tensors(
    problem: Problem,
    state: State,
    chunk: slice,
    r: Tensor,
    t: Tensor,
    rays: Tensor,
    d_ray: Tensor,
    scale: float,
    move: Tensor,
    shared: Tensor,
) -> Tensor:
    """`back_substitute` by tensor operations."""
    src = problem.edges.source[chunk]
    terms = _terms(problem, state, chunk, r, t, rays, d_ray, scale)
    shift = (terms.J @ move[:, None, :, None]).squeeze(-1)
    if problem.intrinsics:
        shift = shift + terms.Jk @ shared
    out = state.params.new_zeros(int(src[-1]) - int(src[0]) + 1, problem.uv.shape[1])
    return out.index_add_(0, src - src[0], _dot(terms.Jd, shift) * terms.rw)


def linearise_compiled(
    problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float
) -> Sums:
    """`linearise` by the loops of `fused`."""
    src, n, points = problem.edges.source[chunk], len(problem.intrinsics), problem.uv.shape[1]
    common = _compiled_arguments(problem, state, chunk, r, t, rays, d_ray)
    edges, span = len(src), len(common[0]) - 1
    shapes = ((edges, 6, 6), (edges, 6), (edges, 6, n), (span, n, n), (span, n), (span, _width(problem, src), points))
    # torch's memory starts on a cache line; numpy's does not, and then the last bits of a product depend on where it happens to start
    sums = tuple(torch.zeros(shape, dtype=torch.float64) for shape in (*shapes, (span, points), (span, points), (span, 2)))
    arrays = tuple(x.numpy() for x in sums)

    def task(a: int, b: int) -> None:
        fused.linearise(a, b, *common, scale * scale, problem.near, problem.rotation_only, *arrays)

    parallel.spans(task, span, edges * points)
    Hjj, gj, Hjk, Hkk, gk, E, C, w, totals = sums
    return Sums(Hjj, gj, Hjk, Hkk.sum(0), gk.sum(0), E, C, w, float(totals[:, 0].sum()), float(totals[:, 1].sum()))


@dataclass(frozen=True)
class _Terms:
    """Per measurement of a chunk: error (E, P, 2); Jacobians of its position by destination camera J (E, P, 2, 6), depth Jd (E, P, 2) and
    intrinsics Jk (E, P, 2, n); robust weight rw (E, P). cost, mass: sums."""

    error: Tensor
    J: Tensor
    Jd: Tensor
    Jk: Tensor
    rw: Tensor
    cost: float
    mass: float


def _terms(problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float) -> _Terms:
    dtype = state.params.dtype
    src = problem.edges.source[chunk]
    d = state.inverse_depth[src]
    point = rays[src] @ r.transpose(-1, -2) + t[:, None] * d.unsqueeze(-1)
    uv, A, B = cameras.project_with_jacobian(point, state.params, problem.model, _intrinsic_columns(problem))
    error = problem.edges.target[chunk].to(dtype) - uv
    squared = error[..., 0].square() + error[..., 1].square()
    weight = problem.edges.weight[chunk].to(dtype)
    seen = (point[..., 2] > problem.near) & cameras.in_view(point, state.params, problem.model)
    shape = scale * scale / (scale * scale + squared)
    # a point that the camera cannot see is an outlier at its worst, so that no step is rewarded for hiding points
    cost = float((weight * torch.where(seen, squared * shape, scale * scale)).sum())
    weight = weight * seen
    J = torch.cat([A * d[..., None, None], torch.cross(point.unsqueeze(-2).expand_as(A), A, dim=-1)], -1)
    if problem.rotation_only:
        J[..., :3] = 0.0
    Jd = (A.flatten(1, 2) @ t.unsqueeze(-1)).view_as(error) * problem.free_depth[src].to(dtype)[:, None, None]
    Jk = J[..., :0]
    if problem.intrinsics:
        Jk = B @ _intrinsic_basis(problem, state.params)
        Jk = Jk + A[..., :2] @ (r[:, None, :2, :2] @ d_ray[src]) + A[..., 2:] @ (r[:, None, 2:, :2] @ d_ray[src])
    return _Terms(error, J, Jd, Jk, weight * shape * shape, cost, float((weight * shape).sum()))


def linearise_tensors(
    problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float
) -> Sums:
    """`linearise` by tensor operations, on any device and in any floating type."""
    zeros = state.params.new_zeros
    n, points = len(problem.intrinsics), problem.uv.shape[1]
    src = problem.edges.source[chunk]
    edges_n, first = len(src), int(src[0])
    span, local = int(src[-1]) - first + 1, src - first
    terms = _terms(problem, state, chunk, r, t, rays, d_ray, scale)
    error, J, Jd, Jk, rw = terms.error, terms.J, terms.Jd, terms.Jk, terms.rw
    WJ = J * rw[..., None, None]
    flat = J.reshape(edges_n, -1, 6).transpose(1, 2)
    gj = (WJ.reshape(edges_n, -1, 6).transpose(1, 2) @ error.reshape(edges_n, -1, 1)).squeeze(-1)
    Ej = _inner(WJ, Jd)
    Jd_w = Jd * rw.unsqueeze(-1)
    C = zeros(span, points).index_add_(0, local, _dot(Jd, Jd_w))
    w = zeros(span, points).index_add_(0, local, _dot(Jd_w, error))
    E = zeros(span, _width(problem, src), points)
    place = (6 * (1 + order_in_source(src)))[:, None] + torch.arange(6, device=src.device)
    E[local[:, None], place] = Ej.transpose(1, 2)
    E[:, :6].index_add_(0, local, -(Ej @ adjoint(r, t)).transpose(1, 2))
    if problem.rotation_only:
        E[:, :3] = 0.0
    Hjk, Hkk, gk = zeros(edges_n, 6, n), zeros(n, n), zeros(n)
    if n:
        WJk = Jk * rw[..., None, None]
        Hjk, Hkk = flat @ WJk.reshape(edges_n, -1, n), Jk.reshape(-1, n).T @ WJk.reshape(-1, n)
        gk = WJk.reshape(-1, n).T @ error.ravel()
        E[:, -n:].index_add_(0, local, _inner(WJk, Jd).transpose(1, 2))
    return Sums(flat @ WJ.reshape(edges_n, -1, 6), gj, Hjk, Hkk, gk, E, C, w, terms.cost, terms.mass)


def _rays(problem: Problem, state: State) -> tuple[Tensor, Tensor]:
    """Rays (K, P, 3) of all points and how the free intrinsics move them (K, P, 2, n)."""
    (count, points), n = problem.uv.shape[:2], len(problem.intrinsics)
    rays, d_ray = state.params.new_empty(count, points, 3), state.params.new_empty(count, points, 2, n)
    if backend_for(state.params) == "compiled":
        common = (problem.uv.contiguous().numpy(), *_compiled_camera(problem, state), rays.numpy(), d_ray.numpy())
        parallel.spans(lambda first, last: fused.rays(first, last, *common), count, count * points * cameras.NEWTON_ITERATIONS)
        return rays, d_ray
    columns, basis = _intrinsic_columns(problem), _intrinsic_basis(problem, state.params)
    step = max(1, _rows_at_a_time(problem) // max(1, points))
    for first in range(0, count, step):
        part = slice(first, first + step)
        rays[part], by_slot = cameras.unproject_with_jacobian(problem.uv[part], state.params, problem.model, columns)
        d_ray[part] = by_slot @ basis
    return rays, d_ray


def _relative_tangent(problem: Problem, r: Tensor, t: Tensor) -> Tensor:
    """Ad (E, 6, 6): minus how a motion of the source camera moves the points in the destination camera."""
    ad = adjoint(r, t)
    if problem.rotation_only:
        ad = torch.block_diag(ad.new_zeros(3, 3), torch.eye(3, dtype=ad.dtype, device=ad.device)) @ ad
    return ad


def _build(problem: Problem, state: State, scale: float, plan: _Plan) -> _System:
    """Linearise all measurements at `state` and eliminate the depths."""
    n = len(problem.intrinsics)
    C, w = torch.zeros_like(state.inverse_depth), torch.zeros_like(state.inverse_depth)
    rays, d_ray = _rays(problem, state)
    reduced = Reduced(plan.pattern, n, state.params)
    cost: float | Tensor = 0.0
    mass: float | Tensor = 0.0
    for number, chunk in enumerate(plan.chunks):
        src, dst = problem.edges.source[chunk], problem.edges.destination[chunk]
        first, last = problem.edges.span(chunk)
        r, t = relative(state.rotation, state.translation, src, dst)
        local, at = src - first, 1 + order_in_source(src)
        sums = linearise(problem, state, chunk, r, t, rays, d_ray, scale)
        cost, mass = cost + sums.cost, mass + sums.mass
        C[first:last], w[first:last] = sums.C + problem.depth_prior / state.inverse_depth[first:last].square(), sums.w
        if not reduced.size:
            continue
        back = -_relative_tangent(problem, r, t).transpose(1, 2)
        Hij = back @ sums.Hjj
        matrix, vector = (-product for product in eliminate(sums.E, C[first:last].clamp_min(1e-12), sums.w))
        # rows of each source: [own camera, each destination camera, intrinsics]
        wide = matrix.shape[1] - n
        own, six = torch.zeros_like(at), torch.arange(6, device=src.device)
        for rows, columns, block in (
            (own, own, Hij @ back.transpose(1, 2)),
            (at, at, sums.Hjj),
            (own, at, Hij),
            (at, own, Hij.transpose(1, 2)),
        ):
            place = (local[:, None, None], (6 * rows[:, None] + six)[:, :, None], (6 * columns[:, None] + six)[:, None])
            matrix.index_put_(place, block, accumulate=True)
        vector.index_put_((local[:, None], 6 * own[:, None] + six), (back @ sums.gj.unsqueeze(-1)).squeeze(-1), accumulate=True)
        vector.index_put_((local[:, None], 6 * at[:, None] + six), sums.gj, accumulate=True)
        if n:
            tail = wide + torch.arange(n, device=src.device)
            for rows, block in ((own, back @ sums.Hjk), (at, sums.Hjk)):
                matrix.index_put_((local[:, None, None], (6 * rows[:, None] + six)[:, :, None], tail), block, accumulate=True)
            matrix[0, wide:, wide:] += sums.Hkk
            vector[0, wide:] += sums.gk
        reduced.add(number, matrix, vector)
    for position, (precision, gap) in enumerate(_priors(problem, state)):
        reduced.corner[position, position] += precision
        reduced.shared[position] += precision * gap
        cost += precision * gap * gap
    return _System(reduced, float(cost), float(mass), 1.0 / C.clamp_min(1e-12), w, scale)


def _priors(problem: Problem, state: State) -> list[tuple[float, float]]:
    """Precision of the prior of each free intrinsic (0: none), and how far its mean is from the value."""
    if not problem.intrinsics:
        return []
    values = _intrinsic_values(problem, state.params).tolist()
    known = [(0.0 if free.prior_std == float("inf") else 1.0 / free.prior_std**2, free) for free in problem.intrinsics]
    return [(precision, free.prior_mean - value if precision else 0.0) for (precision, free), value in zip(known, values, strict=True)]


def _cost(problem: Problem, state: State, scale: float, plan: _Plan) -> tuple[float, float]:
    """Robust cost and mass at `state`, as of `_build` without the system."""
    cost, mass = sum(precision * gap * gap for precision, gap in _priors(problem, state)), 0.0
    compiled = backend_for(state.params) == "compiled"
    rays, d_ray = _rays(replace(problem, intrinsics=()) if compiled else problem, state)
    for chunk in plan.chunks:
        r, t = relative(state.rotation, state.translation, problem.edges.source[chunk], problem.edges.destination[chunk])
        if compiled:
            more = _cost_compiled(problem, state, chunk, r, t, rays, scale)
        else:
            sums = linearise(problem, state, chunk, r, t, rays, d_ray, scale)
            more = (float(sums.cost), float(sums.mass))
        cost, mass = cost + more[0], mass + more[1]
    return cost, mass


def _cost_compiled(problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, scale: float) -> tuple[float, float]:
    common = _compiled_arguments(replace(problem, intrinsics=()), state, chunk, r, t, rays, rays)
    starts, first, R, shift, directions, depth, _, *measured, _, _ = common
    totals = np.zeros((len(starts) - 1, 2))

    def task(a: int, b: int) -> None:
        fused.cost(a, b, starts, first, R, shift, directions, depth, *measured, scale * scale, problem.near, totals)

    parallel.spans(task, len(totals), problem.edges.weight[chunk].numel())
    return float(totals[:, 0].sum()), float(totals[:, 1].sum())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over a last dimension of two; a plain sum over so short a dimension is several times slower."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1]


def _inner(J: Tensor, e: Tensor) -> Tensor:
    """J (..., 2, n)^T e (..., 2) -> (..., n)."""
    return J[..., 0, :] * e[..., 0, None] + J[..., 1, :] * e[..., 1, None]


def _step(problem: Problem, state: State, system: _System, damping: float, plan: _Plan) -> State:
    """One damped Gauss-Newton step."""
    free = plan.free
    delta = system.reduced.solve((damping + 1e-9) * system.reduced.diagonal().clamp_min(0) + 1e-12)
    pose, shared = delta[: 6 * len(free)].view(-1, 6), delta[6 * len(free) :]
    moves = torch.zeros(len(problem.uv), 6, dtype=delta.dtype, device=delta.device)
    moves[free] = pose
    rays, d_ray = _rays(problem, state)
    change = system.w.clone()
    for chunk in plan.chunks:
        src, dst = problem.edges.source[chunk], problem.edges.destination[chunk]
        r, t = relative(state.rotation, state.translation, src, dst)
        move = moves[dst] - (_relative_tangent(problem, r, t) @ moves[src].unsqueeze(-1)).squeeze(-1)
        change[slice(*problem.edges.span(chunk))] -= back_substitute(problem, state, chunk, r, t, rays, d_ray, system.scale, move, shared)
    change = change * system.c_inverse * problem.free_depth[:, None]
    depth = state.inverse_depth
    change = change.clamp(-0.5 * depth, 2.0 * depth)
    r, t = exp_se3(pose)
    rotation, translation = state.rotation.clone(), state.translation.clone()
    rotation[free] = r @ state.rotation[free]
    translation[free] = (r @ state.translation[free].unsqueeze(-1)).squeeze(-1) + t
    params = state.params.clone()
    for position, free_intrinsic in enumerate(problem.intrinsics):
        value = shared[position]
        if free_intrinsic.name == "focal":
            params[:2] = params[:2] * torch.exp(value.clamp(-0.2, 0.2))
        else:
            limit = 0.1 * float(params[0]) if free_intrinsic.name in ("cx", "cy") else 0.1
            params[SLOTS[free_intrinsic.name][0]] += value.clamp(-limit, limit)
    return State(rotation, translation, (depth + change).clamp(1e-4, 1e4), params)


def solve(problem: Problem, state: State, schedule: Schedule) -> tuple[State, Report]:
    """Minimise the robust cost by damped Gauss-Newton at each scale in turn. A step that raises the cost is taken back
    with more damping."""
    report, plan = Report(), _Plan.of(problem)
    damping = schedule.damping
    for scale, steps in zip(schedule.scales, schedule.steps, strict=True):
        system = _build(problem, state, scale, plan)
        cost, mass = system.cost, system.mass
        taken, attempts = 0, 0
        while taken < steps and attempts < 2 * steps:
            attempts += 1
            candidate = _step(problem, state, system, damping, plan)
            trial = _build(problem, candidate, scale, plan) if taken + 1 < steps else None  # nothing follows the last step
            tried = (trial.cost, trial.mass) if trial else _cost(problem, candidate, scale, plan)
            if tried[0] <= cost * (1 + 1e-6):
                gain = (cost - tried[0]) / max(cost, 1e-12)
                state, system, taken = candidate, trial or system, taken + 1
                cost, mass = tried
                damping = max(damping / 5.0, 1e-8)
                report.trace.append((scale, cost))
                if gain < schedule.tolerance:
                    break
            else:
                damping = min(damping * 20.0, 1e3)
                if damping > 100:
                    break
        damping = schedule.damping
        report.steps += taken
        report.cost, report.mass = cost, mass
    return state, report


@dataclass(frozen=True)
class Posterior:
    """Uncertainty at a solution, for unit noise of a measurement of weight 1 (pixels); multiply by the noise found.

    position_std (K,) in the unit of translation, relative to the fixed keyframes; intrinsic_std (n,), log focal or k;
    depth_std (K, P): of each inverse depth with the cameras held.
    """

    position_std: Tensor
    intrinsic_std: Tensor
    depth_std: Tensor


def posterior(problem: Problem, state: State, scale: float) -> Posterior:
    """Posterior of the free unknowns from the reduced system, at robust scale `scale` pixels.

    The gauge is held by the fixed poses and, where there is only one, for scale by a constraint along the direction that multiplies all
    translations.
    """
    plan = _Plan.of(problem)
    system = _build(problem, state, scale, plan)
    free, diagonal = plan.free, system.reduced.diagonal()
    gauge = torch.zeros_like(diagonal)
    if len(free) == len(problem.uv) - 1:
        gauge[: 6 * len(free)].view(-1, 6)[:, :3] = state.translation[free]
    length = gauge.norm()
    variance = system.reduced.variance(gauge / length if length > 0 else gauge, 1e-9 * diagonal.abs() + 1e-12).clamp_min(0)
    position = torch.zeros(len(problem.uv), dtype=variance.dtype, device=variance.device)
    position[free] = variance[: 6 * len(free)].view(-1, 6)[:, :3].sum(-1).sqrt()
    return Posterior(position, variance[6 * len(free) :].sqrt(), system.c_inverse.sqrt())


def scores(problem: Problem, state: State, scale: float) -> tuple[Tensor, Tensor]:
    """What the measurements say of the free intrinsics with poses and depths eliminated and priors left out: the Hessian (n, n) for unit
    noise, and the gradient by point (K, P, n), whose sum is 0 where they settle the intrinsics by themselves."""
    bare = replace(problem, intrinsics=tuple(replace(free, prior_std=float("inf")) for free in problem.intrinsics))
    n, plan = len(bare.intrinsics), _Plan.of(bare)
    whole = _build(bare, state, scale, plan).reduced
    moves = state.params.new_zeros(len(bare.uv), 6, n)
    moves[plan.free] = -whole.cameras_by_intrinsics(1e-9 * whole.diagonal().abs() + 1e-12).view(-1, 6, n)
    rays, d_ray = _rays(bare, state)
    hessian, gradient = moves.new_zeros(n, n), moves.new_zeros(*bare.uv.shape[:2], n)
    for chunk in plan.chunks:
        src, dst = bare.edges.source[chunk], bare.edges.destination[chunk]
        first, last = bare.edges.span(chunk)
        r, t = relative(state.rotation, state.translation, src, dst)
        terms = _terms(bare, state, chunk, r, t, rays, d_ray, scale)
        slope = terms.Jk + terms.J @ (moves[dst] - _relative_tangent(bare, r, t) @ moves[src])[:, None]
        local, zeros = src - first, slope.new_zeros(last - first, *slope.shape[1:2])
        C = zeros.index_add(0, local, _dot(terms.Jd, terms.Jd) * terms.rw) + bare.depth_prior / state.inverse_depth[first:last].square()
        by_depth = gradient[first:last] * 0.0
        by_depth.index_add_(0, local, _inner(slope, terms.Jd) * terms.rw.unsqueeze(-1))
        slope = slope - terms.Jd.unsqueeze(-1) * (by_depth / C.unsqueeze(-1))[local].unsqueeze(2)
        hessian += slope.reshape(-1, n).T @ (slope * terms.rw[..., None, None]).reshape(-1, n)
        gradient[first:last].index_add_(0, local, _inner(slope, terms.error) * terms.rw.unsqueeze(-1))
    return hessian, gradient
