"""Bundle adjustment over keyframe cameras, per-point inverse depth and shared intrinsics.

    minimise  sum_{edges i->j} sum_p  w_ijp * rho( project(R_ij ray_i(p) + t_ij d_ip) - target_ijp )  +  priors

Cameras are world-to-camera, perturbed from the left, T <- Exp([tau, phi]) T; a point is a pixel of its own keyframe with one inverse depth
(1 / z), so the depth block of the Hessian is diagonal and is eliminated (Schur complement; Triggs et al. 2000, section 6):
S = H - E C^-1 E^T.
With J_j the Jacobian of the target camera, that of the source camera is -J_j Ad(T_ij), so one 6x6 block per edge gives all four.
rho is Geman-McClure with a scale that shrinks from stage to stage (graduated non-convexity, Blake and Zisserman 1987).
No Python loop runs over edges or points; memory is bounded by handling whole source keyframes in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vipe_kernels import cameras, fused
from vipe_kernels.backend import backend_for

_SLOTS: dict[str, tuple[int, ...]] = {"focal": (0, 1), "k1": (4,), "k2": (5,)}
_CHUNK_ROWS = 150_000


@dataclass(frozen=True)
class Intrinsic:
    """One free intrinsic direction: which entries of the 9-vector move, its prior mean and prior standard deviation (inf: none).

    `focal` moves log fx and log fy together (prior on log fx); `k1`, `k2` are additive.
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
        """`source` on the host, copied from the device once."""
        return self.source.cpu().numpy()

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
    """Normal equations after elimination. S (N, N), v (N,): reduced; the rest back-substitutes the depths."""

    S: Tensor
    v: Tensor
    cost: float
    mass: float
    c_inverse: Tensor
    w: Tensor
    rows: list[tuple[int, int, Tensor, Tensor]]


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
    rays = cameras.unproject(problem.uv, state.params, problem.model)
    r, t = relative(state.rotation, state.translation, edges.source, edges.destination)
    points = rays[edges.source] @ r.transpose(-1, -2) + t[:, None] * state.inverse_depth[edges.source].unsqueeze(-1)
    return cameras.project(points, state.params, problem.model), points[..., 2] > problem.near


def residuals(problem: Problem, state: State) -> Tensor:
    """Distance in pixels between measured and predicted position, (E, P); nan where not measured or behind the camera."""
    out = torch.full(problem.edges.weight.shape, float("nan"), dtype=state.params.dtype)
    for chunk in _chunks(problem):
        edges = Edges(*(getattr(problem.edges, name)[chunk] for name in ("source", "destination", "target", "weight")))
        uv, front = transfer(problem, state, edges)
        distance = (edges.target - uv).norm(dim=-1)
        out[chunk] = torch.where(front & (edges.weight > 0), distance, torch.nan)
    return out


def _chunks(problem: Problem) -> list[slice]:
    """Runs of edges that hold whole source keyframes and about _CHUNK_ROWS points."""
    source, points = problem.edges.source, max(1, problem.edges.weight.shape[1])
    if len(source) == 0:
        return []
    counts = torch.unique_consecutive(source, return_counts=True)[1].tolist()
    chunks, start, size = [], 0, 0
    for count in counts:
        if size and (size + count) * points > _CHUNK_ROWS:
            chunks.append(slice(start, start + size))
            start, size = start + size, 0
        size += count
    return [*chunks, slice(start, start + size)]


def _intrinsic_columns(problem: Problem) -> list[int]:
    """Slots of the parameter vector that the free intrinsics move."""
    return [slot for free in problem.intrinsics for slot in _SLOTS[free.name]]


def _intrinsic_basis(problem: Problem, params: Tensor) -> Tensor:
    """d params[columns] / d free intrinsics, (columns, n)."""
    columns = _intrinsic_columns(problem)
    basis = torch.zeros(len(columns), len(problem.intrinsics), dtype=params.dtype, device=params.device)
    for position, free in enumerate(problem.intrinsics):
        for slot in _SLOTS[free.name]:
            basis[columns.index(slot), position] = params[slot] if free.name == "focal" else 1.0
    return basis


def _intrinsic_values(problem: Problem, params: Tensor) -> Tensor:
    return torch.stack([torch.log(params[0]) if f.name == "focal" else params[_SLOTS[f.name][0]] for f in problem.intrinsics])


@dataclass(frozen=True)
class Sums:
    """Sums over the measurements of one chunk of S source keyframes and their E edges, in the tangent of the destination camera.

    Hjj (E, 6, 6), gj (E, 6); with the n free intrinsics Hjk (E, 6, n), Hkk (n, n), gk (n,); with the inverse depths E (S, width, P), rows
    [source pose, each destination pose, intrinsics], C (S, P) and w (S, P); robust cost and mass.
    """

    Hjj: Tensor
    gj: Tensor
    Hjk: Tensor
    Hkk: Tensor
    gk: Tensor
    E: Tensor
    C: Tensor
    w: Tensor
    cost: float
    mass: float


def linearise(problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float) -> Sums:
    """Linearise the measurements of a chunk. r, t: `relative` of its edges; rays (K, P, 3), d_ray (K, P, 2, n): of all keyframes."""
    chosen = backend_for(state.params)
    if chosen == "triton":
        from vipe_kernels.gpu import adjustment

        return adjustment.linearise(problem, state, chunk, r, t, rays, d_ray, scale)
    return (linearise_compiled if chosen == "compiled" else linearise_tensors)(problem, state, chunk, r, t, rays, d_ray, scale)


def eliminate(E: Tensor, C: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """E C^-1 E^T (S, W, W) and E C^-1 w (S, W) for S sources: E (S, W, P), C > 0 and w (S, P)."""
    if backend_for(E) == "triton":
        from vipe_kernels.gpu import schur

        return schur.eliminate(E, C, w)
    EC = E / C.unsqueeze(1)
    return EC @ E.transpose(1, 2), (EC @ w.unsqueeze(-1)).squeeze(-1)


def _width(problem: Problem, src: Tensor) -> int:
    """Rows of the depth-to-rest block: own pose, the most destinations any source has, intrinsics."""
    return 6 * (int(torch.unique_consecutive(src, return_counts=True)[1].max()) + 1) + len(problem.intrinsics)


def linearise_compiled(
    problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float
) -> Sums:
    """`linearise` by the loops of `fused`."""
    src = problem.edges.source[chunk]
    first, edges, n, points = int(src[0]), len(src), len(problem.intrinsics), problem.uv.shape[1]
    span = int(src[-1]) - first + 1
    starts = np.searchsorted(src.numpy(), first + np.arange(span + 1))
    params = state.params.numpy()
    codes = np.array([fused.INTRINSIC_CODES[f.name] for f in problem.intrinsics], np.int64)
    slope = d_ray.numpy() if n else np.zeros((1, 1, 2, 1))
    shapes = ((edges, 6, 6), (edges, 6), (edges, 6, n), (span, n, n), (span, n), (span, _width(problem, src), points))
    sums = tuple(np.zeros(shape) for shape in (*shapes, (span, points), (span, points), (span, 2)))
    totals = sums[-1]
    target, weight = problem.edges.target[chunk].numpy(), problem.edges.weight[chunk].numpy()
    common = (starts, first, *(x.contiguous().numpy() for x in (r, t, rays, state.inverse_depth, problem.free_depth)), target, weight)
    camera = (params, fused.MODEL_CODES[problem.model], fused.view_limit(params, problem.model), codes, slope)

    def task(a: int, b: int) -> None:
        fused.linearise(a, b, *common, *camera, scale * scale, problem.near, problem.rotation_only, *sums)

    fused.threaded(task, span, weight.size)
    Hjj, gj, Hjk, Hkk, gk, E, C, w = (torch.from_numpy(x) for x in sums[:-1])
    return Sums(Hjj, gj, Hjk, Hkk.sum(0), gk.sum(0), E, C, w, float(totals[:, 0].sum()), float(totals[:, 1].sum()))


def linearise_tensors(
    problem: Problem, state: State, chunk: slice, r: Tensor, t: Tensor, rays: Tensor, d_ray: Tensor, scale: float
) -> Sums:
    """`linearise` by tensor operations, on any device and in any floating type."""
    dtype, device = state.params.dtype, state.params.device
    n, points = len(problem.intrinsics), problem.uv.shape[1]
    src = problem.edges.source[chunk]
    edges_n, first = len(src), int(src[0])
    span, local = int(src[-1]) - first + 1, src - first
    d = state.inverse_depth[src]
    point = rays[src] @ r.transpose(-1, -2) + t[:, None] * d.unsqueeze(-1)
    columns = _intrinsic_columns(problem)
    uv, A, B = cameras.project_with_jacobian(point, state.params, problem.model, columns)
    error = problem.edges.target[chunk].to(dtype) - uv
    squared = error[..., 0].square() + error[..., 1].square()
    weight = problem.edges.weight[chunk].to(dtype)
    seen = (point[..., 2] > problem.near) & cameras.in_view(point, state.params, problem.model)
    shape = scale * scale / (scale * scale + squared)
    # a point that the camera cannot see is an outlier at its worst, so that no step is rewarded for hiding points
    cost = float((weight * torch.where(seen, squared * shape, scale * scale)).sum())
    weight = weight * seen
    rw = weight * shape * shape
    J = torch.cat([A * d[..., None, None], torch.cross(point.unsqueeze(-2).expand_as(A), A, dim=-1)], -1)
    if problem.rotation_only:
        J[..., :3] = 0.0
    Jd = (A.flatten(1, 2) @ t.unsqueeze(-1)).view_as(error) * problem.free_depth[src].to(dtype)[:, None, None]
    WJ = J * rw[..., None, None]
    flat = J.reshape(edges_n, -1, 6).transpose(1, 2)
    gj = (WJ.reshape(edges_n, -1, 6).transpose(1, 2) @ error.reshape(edges_n, -1, 1)).squeeze(-1)
    Ej = _inner(WJ, Jd)
    Jd_w = Jd * rw.unsqueeze(-1)
    C = torch.zeros(span, points, dtype=dtype, device=device).index_add_(0, local, _dot(Jd, Jd_w))
    w = torch.zeros(span, points, dtype=dtype, device=device).index_add_(0, local, _dot(Jd_w, error))
    order = torch.arange(edges_n, device=device) - torch.searchsorted(src, src)
    E = torch.zeros(span, _width(problem, src), points, dtype=dtype, device=device)
    E[local[:, None], (6 * (1 + order))[:, None] + torch.arange(6, device=device)] = Ej.transpose(1, 2)
    E[:, :6].index_add_(0, local, -(Ej @ adjoint(r, t)).transpose(1, 2))
    if problem.rotation_only:
        E[:, :3] = 0.0
    Hjk, Hkk, gk = torch.zeros(edges_n, 6, n, dtype=dtype), torch.zeros(n, n, dtype=dtype), torch.zeros(n, dtype=dtype)
    if n:
        Jk = B @ _intrinsic_basis(problem, state.params)
        Jk = Jk + A[..., :2] @ (r[:, None, :2, :2] @ d_ray[src]) + A[..., 2:] @ (r[:, None, 2:, :2] @ d_ray[src])
        WJk = Jk * rw[..., None, None]
        Hjk, Hkk = flat @ WJk.reshape(edges_n, -1, n), Jk.reshape(-1, n).T @ WJk.reshape(-1, n)
        gk = WJk.reshape(-1, n).T @ error.ravel()
        E[:, -n:].index_add_(0, local, _inner(WJk, Jd).transpose(1, 2))
    return Sums(flat @ WJ.reshape(edges_n, -1, 6), gj, Hjk, Hkk, gk, E, C, w, cost, float((weight * shape).sum()))


def _build(problem: Problem, state: State, scale: float) -> _System:
    """Linearise all measurements at `state` and eliminate the depths."""
    dtype, device = state.params.dtype, state.params.device
    count, points = problem.uv.shape[:2]
    n = len(problem.intrinsics)
    slot = torch.full((count,), -1, dtype=torch.long, device=device)
    free = torch.nonzero(problem.free_pose).ravel()
    slot[free] = torch.arange(len(free), device=device)
    size = 6 * len(free) + n
    trash = size  # fixed poses write to one extra row and column, dropped at the end
    S = torch.zeros((size + 1) * (size + 1), dtype=dtype, device=device)
    v = torch.zeros(size + 1, dtype=dtype, device=device)
    C = torch.zeros(count, points, dtype=dtype, device=device)
    w = torch.zeros(count, points, dtype=dtype, device=device)
    basis = _intrinsic_basis(problem, state.params)
    if n:
        columns = _intrinsic_columns(problem)
        rays, d_ray = cameras.unproject_with_jacobian(problem.uv, state.params, problem.model, columns)
        d_ray = d_ray @ basis
    else:
        columns = []
        rays, d_ray = cameras.unproject(problem.uv, state.params, problem.model), torch.empty(0, dtype=dtype)
    tail = torch.arange(6 * len(free), size, device=device)
    cost, mass = 0.0, 0.0
    six = torch.arange(6, device=device)
    blocks: list[tuple[int, int, Tensor, Tensor]] = []
    prior = problem.depth_prior
    for chunk in _chunks(problem):
        src, dst = problem.edges.source[chunk], problem.edges.destination[chunk]
        edges_n, first, last = len(src), int(src[0]), int(src[-1])
        r, t = relative(state.rotation, state.translation, src, dst)
        # rows of the eliminated system that each source keyframe touches: [own pose, each destination pose, intrinsics]
        local = src - first
        order = torch.arange(edges_n, device=device) - torch.searchsorted(src, src)
        sums = linearise(problem, state, chunk, r, t, rays, d_ray, scale)
        cost, mass = cost + sums.cost, mass + sums.mass
        Hjj, gj, E = sums.Hjj, sums.gj, sums.E
        ad = adjoint(r, t)
        if problem.rotation_only:
            ad = torch.block_diag(torch.zeros(3, 3, dtype=dtype), torch.eye(3, dtype=dtype)) @ ad
        Hij = -ad.transpose(1, 2) @ Hjj
        Hii = -Hij @ ad
        gi = -(ad.transpose(1, 2) @ gj.unsqueeze(-1)).squeeze(-1)
        depth = state.inverse_depth[first : last + 1]
        C[first : last + 1], w[first : last + 1] = sums.C + prior / depth.square(), sums.w
        index = torch.full(E.shape[:2], trash, dtype=torch.long, device=device)
        place_i = torch.where(slot[src] >= 0, slot[src] * 6, -1)
        place_j = torch.where(slot[dst] >= 0, slot[dst] * 6, -1)
        index[local[:, None], (6 * (1 + order))[:, None] + six] = torch.where(place_j[:, None] >= 0, place_j[:, None] + six, trash)
        index[local[:, None], six] = torch.where(place_i[:, None] >= 0, place_i[:, None] + six, trash)
        if n:
            Hjk = sums.Hjk
            Hik = -ad.transpose(1, 2) @ Hjk
            index[:, -n:] = tail
            _scatter(S, size, tail[None], tail[None], sums.Hkk[None])
            shared = tail.expand(edges_n, n)
            for place, block in ((place_i, Hik), (place_j, Hjk)):
                rows = torch.where(place[:, None] >= 0, place[:, None] + six, trash)
                _scatter(S, size, rows, shared, block)
                _scatter(S, size, shared, rows, block.transpose(1, 2))
            v.index_add_(0, tail, sums.gk)
        rows_i = torch.where(place_i[:, None] >= 0, place_i[:, None] + six, trash)
        rows_j = torch.where(place_j[:, None] >= 0, place_j[:, None] + six, trash)
        _scatter(S, size, rows_i, rows_i, Hii)
        _scatter(S, size, rows_j, rows_j, Hjj)
        _scatter(S, size, rows_i, rows_j, Hij)
        _scatter(S, size, rows_j, rows_i, Hij.transpose(1, 2))
        v.index_add_(0, rows_i.ravel(), gi.ravel()).index_add_(0, rows_j.ravel(), gj.ravel())
        product, shift = eliminate(E, C[first : last + 1].clamp_min(1e-12), w[first : last + 1])
        _scatter(S, size, index, index, -product)
        v.index_add_(0, index.ravel(), -shift.ravel())
        blocks.append((first, last + 1, index, E.to(torch.float32)))
    matrix = S.view(size + 1, size + 1)[:size, :size]
    vector = v[:size]
    for position, free_intrinsic in enumerate(problem.intrinsics):
        if free_intrinsic.prior_std != float("inf"):
            k = 6 * len(free) + position
            precision = 1.0 / free_intrinsic.prior_std**2
            gap = free_intrinsic.prior_mean - float(_intrinsic_values(problem, state.params)[position])
            matrix[k, k] += precision
            vector[k] += precision * gap
            cost += precision * gap * gap
    return _System(matrix, vector, cost, mass, 1.0 / C.clamp_min(1e-12), w, blocks)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over a last dimension of two; a plain sum over so short a dimension is several times slower."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1]


def _inner(J: Tensor, e: Tensor) -> Tensor:
    """J (..., 2, n)^T e (..., 2) -> (..., n)."""
    return J[..., 0, :] * e[..., 0, None] + J[..., 1, :] * e[..., 1, None]


def _scatter(S: Tensor, size: int, rows: Tensor, columns: Tensor, blocks: Tensor) -> None:
    """S[rows x columns] += blocks, for batches: rows (B, a), columns (B, b), blocks (B, a, b); S is flat (size + 1)^2."""
    index = rows.unsqueeze(-1) * (size + 1) + columns.unsqueeze(-2)
    S.index_add_(0, index.ravel(), blocks.ravel())


def _step(problem: Problem, state: State, system: _System, damping: float) -> State:
    """One damped Gauss-Newton step."""
    size = len(system.v)
    n = len(problem.intrinsics)
    diagonal = system.S.diagonal()
    scale = float(diagonal.abs().mean()) if size else 1.0
    damped = system.S + torch.diag(damping * diagonal.clamp_min(0) + 1e-9 * scale + 1e-12)
    factor, info = torch.linalg.cholesky_ex(damped)
    if int(info) != 0:
        factor = torch.linalg.cholesky(damped + torch.eye(size, dtype=damped.dtype) * (1e-3 * scale + 1e-9))
    delta = torch.cholesky_solve(system.v.unsqueeze(-1), factor).squeeze(-1)
    padded = torch.cat([delta, delta.new_zeros(1)])
    change = torch.zeros_like(state.inverse_depth)
    for first, last, index, E in system.rows:
        change[first:last] -= (E.to(padded.dtype) * padded[index].unsqueeze(-1)).sum(1)
    change = (change + system.w) * system.c_inverse * problem.free_depth[:, None]
    depth = state.inverse_depth
    change = change.clamp(-0.5 * depth, 2.0 * depth)
    free = torch.nonzero(problem.free_pose).ravel()
    pose = delta[: 6 * len(free)].view(-1, 6)
    r, t = exp_se3(pose)
    rotation, translation = state.rotation.clone(), state.translation.clone()
    rotation[free] = r @ state.rotation[free]
    translation[free] = (r @ state.translation[free].unsqueeze(-1)).squeeze(-1) + t
    params = state.params.clone()
    for position, free_intrinsic in enumerate(problem.intrinsics):
        value = delta[len(delta) - n + position]
        if free_intrinsic.name == "focal":
            params[:2] = params[:2] * torch.exp(value.clamp(-0.2, 0.2))
        else:
            params[_SLOTS[free_intrinsic.name][0]] += value.clamp(-0.1, 0.1)
    return State(rotation, translation, (depth + change).clamp(1e-4, 1e4), params)


def solve(problem: Problem, state: State, schedule: Schedule) -> tuple[State, Report]:
    """Minimise the robust cost by damped Gauss-Newton at each scale in turn. A step that raises the cost is taken back
    with more damping."""
    report = Report()
    damping = schedule.damping
    for scale, steps in zip(schedule.scales, schedule.steps, strict=True):
        system = _build(problem, state, scale)
        taken, attempts = 0, 0
        while taken < steps and attempts < 2 * steps:
            attempts += 1
            candidate = _step(problem, state, system, damping)
            trial = _build(problem, candidate, scale)
            if trial.cost <= system.cost * (1 + 1e-6):
                gain = (system.cost - trial.cost) / max(system.cost, 1e-12)
                state, system, taken = candidate, trial, taken + 1
                damping = max(damping / 5.0, 1e-8)
                report.trace.append((scale, trial.cost))
                if gain < schedule.tolerance:
                    break
            else:
                damping = min(damping * 20.0, 1e3)
                if damping > 100:
                    break
        damping = schedule.damping
        report.steps += taken
        report.cost, report.mass = system.cost, system.mass
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

    The gauge is held by the fixed poses and, for scale, by a constraint along the direction that multiplies all translations.
    """
    system = _build(problem, state, scale)
    size, n = len(system.v), len(problem.intrinsics)
    free = torch.nonzero(problem.free_pose).ravel()
    matrix = system.S
    null = torch.zeros(size, dtype=matrix.dtype)
    null[: 6 * len(free)].view(-1, 6)[:, :3] = state.translation[free]
    norm = null.norm()
    if norm > 0:
        null = null / norm
        matrix = matrix + torch.outer(null, null) * matrix.diagonal().abs().max()
    matrix = matrix + torch.diag(1e-9 * matrix.diagonal().abs() + 1e-12)
    factor, info = torch.linalg.cholesky_ex(matrix)
    inverse = torch.cholesky_inverse(factor) if int(info) == 0 else torch.linalg.pinv(matrix, hermitian=True)
    position = torch.zeros(len(problem.uv), dtype=matrix.dtype)
    if len(free):
        variance = inverse.diagonal()[: 6 * len(free)].view(-1, 6)[:, :3].clamp_min(0)
        position[free] = variance.sum(-1).sqrt()
    return Posterior(position, inverse.diagonal()[size - n :].clamp_min(0).sqrt(), system.c_inverse.sqrt())
