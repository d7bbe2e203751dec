"""Bundle adjustment over keyframe cameras, per-point inverse depth and shared intrinsics.

    minimise  sum_{edges i->j} sum_p  w_ijp * rho( project(R_ij ray_i(p) + t_ij d_ip) - target_ijp )  +  priors

Cameras are world-to-camera, perturbed from the left, T <- Exp([tau, phi]) T; a point is a pixel of its own keyframe with one inverse depth
(1 / z), so the depth block of the Hessian is diagonal and is eliminated (Schur complement; Triggs et al. 2000, section 6):
S = H - E C^-1 E^T.
With J_j the Jacobian of the target camera, that of the source camera is -J_j Ad(T_ij), so one 6x6 block per edge gives all four.
rho is Geman-McClure with a scale that shrinks from stage to stage (graduated non-convexity, Blake and Zisserman 1987).
No Python loop runs over edges or points. Memory is that of the measurements: whole source keyframes are handled in chunks, S is
block-sparse (`reduced`), and E is kept only where it is small, else formed again when the depths are substituted back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vipe_kernels import cameras, descent, fused, parallel
from vipe_kernels.backend import backend_for
from vipe_kernels.reduced import Pattern, Reduced, zeros_together

SLOTS: dict[str, tuple[int, ...]] = {"focal": (0, 1), "cx": (2,), "cy": (3,), "k1": (4,), "k2": (5,), "k3": (8,)}
"""Entries of the 9-vector of parameters that an intrinsic moves."""
_SAME = 1e-9
"""Similarities that differ by a smaller share move the cameras alike, as turns about a straight path do."""
_CHUNK_ROWS = 150_000
_KEPT_BYTES = 32 * 2**20
"""Of E, up to which it is kept from the elimination of the depths to their substitution."""
_SMALL = 100_000
"""Measurements, seen or not, up to which a problem is adjusted in one compiled call (`descent`), about 40 keyframes: with two threads that
takes no longer than to divide each step, and a fifth less of processor time."""
_GPU_CHUNK_ROWS = 2_000_000
"""Measurements handled at a time on a GPU: enough to fill it, in a few hundred megabytes."""


@dataclass(frozen=True)
class Intrinsic:
    """One free intrinsic direction: which entries of the 9-vector move, its prior mean and prior standard deviation (inf: none).

    `focal` moves log fx and log fy together (prior on log fx); `cx`, `cy` (pixels), `k1`, `k2` and, of Brown's model,
    `k3` are additive.
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
class Stretch:
    """All edges of some source keyframes in a row, and what depends on no state: what is worked on at a time."""

    edges: Edges
    rows: slice

    @cached_property
    def keyframes(self) -> slice:
        """The source keyframes."""
        return slice(*self.edges.span(self.rows))

    @cached_property
    def source(self) -> Tensor:
        """(E,) of each edge, counted from the first of `keyframes`."""
        return self.edges.source[self.rows] - self.keyframes.start

    @cached_property
    def destination(self) -> Tensor:
        """(E,) keyframe in which each edge was measured."""
        return self.edges.destination[self.rows]

    @cached_property
    def target(self) -> Tensor:
        """(E, P, 2) pixels."""
        return self.edges.target[self.rows]

    @cached_property
    def weight(self) -> Tensor:
        """(E, P)."""
        return self.edges.weight[self.rows]

    @cached_property
    def place(self) -> Tensor:
        """(E,) place of each edge behind its source: 1 for the first."""
        return 1 + torch.arange(len(self.source), device=self.source.device) - torch.searchsorted(self.source, self.source)

    @cached_property
    def places(self) -> int:
        """Of a source keyframe: its own, and as many as the most edges that one has."""
        return 1 + int(np.diff(self.starts).max())

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(S + 1,) where the edges of each source begin, on the host."""
        wanted = np.arange(self.keyframes.start, self.keyframes.stop + 1)
        return np.searchsorted(self.edges.host_source[self.rows], wanted).astype(np.int64)


@dataclass(frozen=True)
class Problem:
    """What stays fixed during a solve.

    uv (K, P, 2) pixel of every point; free_pose (K,) bool; free_depth (K,) bool; rotation_only: the
    translations of free poses (all zero) stay.
    depth_prior: precision (1 / px^2 per unit of squared relative change) that keeps unobserved inverse depths near where they are.
    Raises ValueError where k3 of a fisheye lens is to be free: of that only k1 and k2 are.
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

    def __post_init__(self) -> None:
        if self.model == "fisheye" and "k3" in {free.name for free in self.intrinsics}:
            raise ValueError("k3 is free of Brown's model only; leave it out for a fisheye lens")


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
    """Normal equations after elimination at one state and robust scale. C, w (K, P): of the inverse depths; kept: of each chunk E C^-1/2
    (S, width, P), or None where it was not kept."""

    reduced: Reduced
    cost: float
    mass: float
    C: Tensor
    w: Tensor
    kept: list[Tensor | None]
    scale: float


@dataclass(frozen=True)
class _Plan:
    """What of a problem depends on neither state nor scale: the edges in stretches, where in the reduced system they add, whether steps
    keep E, and the rays of each stretch (`Chunk.rays`), once known, where they stay the same and steps keep E, which is larger."""

    stretches: list[Stretch]
    pattern: Pattern
    free: Tensor
    keep: bool
    rays: dict[int, tuple[Tensor, Tensor]] | None

    @classmethod
    def of(cls, problem: Problem, share: float = 1.0) -> _Plan:
        """share: of the points usually handled at a time, for operations that need more memory for each."""
        stretches, device = [Stretch(problem.edges, rows) for rows in _chunks(problem, share)], problem.uv.device
        free = torch.nonzero(problem.free_pose).ravel()
        slot = torch.full((len(problem.uv),), len(free), dtype=torch.long, device=device)
        slot[free] = torch.arange(len(free), device=device)
        pattern = Pattern.of(len(free), [_slots(stretch, slot, len(free)) for stretch in stretches])
        n, points = len(problem.intrinsics), problem.uv.shape[1]
        size = 8 * points * sum(slots.shape[0] * (6 * slots.shape[1] + n) for slots in pattern.slots)
        keep = backend_for(problem.uv) == "compiled" and size <= _KEPT_BYTES
        return cls(stretches, pattern, free, keep, {} if keep and not n else None)

    def over(self, problem: Problem, state: State) -> Iterator[Chunk]:
        """The chunks at a state, one after the other."""
        for number, stretch in enumerate(self.stretches):
            chunk = Chunk(problem, state, stretch, self.rays.get(number) if self.rays is not None else None)
            if self.rays is not None:
                self.rays[number] = chunk.rays
            yield chunk


def _slots(stretch: Stretch, slot: Tensor, cameras: int) -> Tensor:
    """Free camera at each place of each source (S, D) for `Pattern.of`; slot (K,): of each keyframe, `cameras` for none."""
    own = slot[stretch.keyframes]
    table = torch.full((len(own), stretch.places), cameras, dtype=torch.long, device=slot.device)
    table[:, 0] = own
    table[stretch.source, stretch.place] = slot[stretch.destination]
    return table


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


def perturb(xi: Tensor, rotation: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """Exp(xi) (rotation, translation) of cameras: xi (N, 6), rotation (N, 3, 3), translation (N, 3)."""
    if backend_for(xi) == "compiled":
        moved = torch.empty_like(rotation), torch.empty_like(translation)
        fused.perturb(*(x.contiguous().numpy() for x in (xi, rotation, translation)), *(x.numpy() for x in moved))
        return moved
    r, t = exp_se3(xi)
    return r @ rotation, (r @ translation.unsqueeze(-1)).squeeze(-1) + t


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
    out = torch.empty_like(problem.edges.weight)
    one_by_one = _residuals_compiled if backend_for(state.params) == "compiled" else _residuals_tensors
    for rows in _chunks(problem):
        one_by_one(Chunk(replace(problem, intrinsics=()), state, Stretch(problem.edges, rows)), out[rows])
    return out


def _residuals_compiled(chunk: Chunk, out: Tensor) -> None:
    """Of one chunk, by the loops of `fused`, into out (E, P)."""
    common = (*_compiled_points(chunk), *_compiled_lens(chunk)[:-1], chunk.problem.near, out.numpy())  # wherever the lens folds
    parallel.spans(lambda a, b: fused.residuals(a, b, *common), chunk.sources, chunk.stretch.weight.numel())


def _residuals_tensors(chunk: Chunk, out: Tensor) -> None:
    """The same by tensor operations."""
    stretch = chunk.stretch
    edges = Edges(stretch.edges.source[stretch.rows], stretch.destination, stretch.target, stretch.weight)
    uv, front = transfer(chunk.problem, chunk.state, edges)
    distance = (edges.target - uv).norm(dim=-1)
    out[:] = torch.where(front & (edges.weight > 0), distance, torch.nan).to(out.dtype)


def _rows_at_a_time(problem: Problem) -> int:
    """Points that tensors of one pass may hold."""
    return _GPU_CHUNK_ROWS if problem.edges.source.is_cuda else _CHUNK_ROWS


def _chunks(problem: Problem, share: float = 1.0) -> list[slice]:
    """Runs of edges that hold whole source keyframes and about as many points as are handled at a time, or a share of that."""
    limit = share * _rows_at_a_time(problem)
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


@dataclass(frozen=True)
class Chunk:
    """S source keyframes in a row with all their E edges, at one state: what the operations of a pass over the measurements take."""

    problem: Problem
    state: State
    stretch: Stretch
    known_rays: tuple[Tensor, Tensor] | None = None

    @property
    def keyframes(self) -> slice:
        """The source keyframes."""
        return self.stretch.keyframes

    @property
    def sources(self) -> int:
        return int(self.keyframes.stop - self.keyframes.start)

    @property
    def points(self) -> int:
        return self.problem.uv.shape[1]

    @property
    def inverse_depth(self) -> Tensor:
        """(S, P)."""
        return self.state.inverse_depth[self.keyframes]

    @property
    def free_depth(self) -> Tensor:
        """(S,) bool."""
        return self.problem.free_depth[self.keyframes]

    @cached_property
    def _motions(self) -> tuple[Tensor, Tensor, Tensor]:
        """`relative` and `source_tangent`."""
        rotation, translation, stretch = self.state.rotation, self.state.translation, self.stretch
        if backend_for(rotation) != "compiled":
            r, t = relative(rotation, translation, stretch.source + self.keyframes.start, stretch.destination)
            ad = adjoint(r, t)
            if self.problem.rotation_only:
                ad = torch.block_diag(ad.new_zeros(3, 3), torch.eye(3, dtype=ad.dtype, device=ad.device)) @ ad
            return r, t, ad
        r, t, ad = (rotation.new_empty(len(stretch.destination), *shape) for shape in ((3, 3), (3,), (6, 6)))
        given = (rotation.contiguous(), translation.contiguous(), stretch.source, stretch.destination)
        fused.relative(*(x.numpy() for x in given), self.keyframes.start, self.problem.rotation_only, *(x.numpy() for x in (r, t, ad)))
        return r, t, ad

    @property
    def relative(self) -> tuple[Tensor, Tensor]:
        """`relative` of each edge: (E, 3, 3), (E, 3)."""
        return self._motions[:2]

    @property
    def source_tangent(self) -> Tensor:
        """Ad (E, 6, 6): minus how a motion of the source camera moves the points in the destination camera."""
        return self._motions[2]

    def between(self, moves: Tensor) -> Tensor:
        """How motions (K, 6) of cameras move each edge's destination relative to its source, in the tangent of the destination: (E, 6)."""
        own = moves[self.keyframes][self.stretch.source]
        return moves[self.stretch.destination] - (self.source_tangent @ own.unsqueeze(-1)).squeeze(-1)

    @cached_property
    def rays(self) -> tuple[Tensor, Tensor]:
        """Rays (S, P, 3), z = 1, of the points and how the free intrinsics move them (S, P, 2, n)."""
        if self.known_rays is not None:
            return self.known_rays
        problem, params = self.problem, self.state.params
        uv, n = problem.uv[self.keyframes], len(problem.intrinsics)
        if backend_for(params) != "compiled":
            columns, basis = _intrinsic_columns(problem), _intrinsic_basis(problem, params)
            rays, by_slot = cameras.unproject_with_jacobian(uv, params, problem.model, columns)
            return rays, by_slot @ basis
        rays, slope = params.new_empty(*uv.shape[:2], 3), params.new_empty(*uv.shape[:2], 2, n)
        common = (uv.contiguous().numpy(), *_compiled_camera(problem, self.state), rays.numpy(), slope.numpy())
        work = (1 if problem.model == "pinhole" else cameras.NEWTON_ITERATIONS) * uv.shape[0] * uv.shape[1]
        parallel.spans(lambda first, last: fused.rays(first, last, *common), len(uv), work)
        return rays, slope

    @property
    def width(self) -> int:
        """Rows of the depth-to-rest block: own pose, the most destinations any source has, intrinsics."""
        return 6 * self.stretch.places + len(self.problem.intrinsics)


@dataclass(frozen=True)
class Condensed:
    """What the measurements of one chunk say once its depths are eliminated: of `Sums` all but E, with the prior of the depths in C; and
    E C^-1 E^T, matrix (S, width, width), and E C^-1 w, vector (S, width), both None where nothing but depths is free; and E C^-1/2, kept
    (S, width, P), None where it was not asked for."""

    Hjj: Tensor
    gj: Tensor
    Hjk: Tensor
    Hkk: Tensor
    gk: Tensor
    matrix: Tensor | None
    vector: Tensor | None
    C: Tensor
    w: Tensor
    cost: float | Tensor
    mass: float | Tensor
    kept: Tensor | None = None


def condense(chunk: Chunk, scale: float, wanted: bool = True, keep: bool = False) -> Condensed:
    """Linearise the measurements of a chunk at robust scale `scale` pixels and, where wanted, eliminate its depths; keep E on the CPU."""
    if backend_for(chunk.state.params) == "compiled":
        return condense_compiled(chunk, scale, wanted, keep)
    return condense_in_steps(chunk, scale, wanted)


def condense_in_steps(chunk: Chunk, scale: float, wanted: bool = True) -> Condensed:
    """`condense` by tensor operations, or on a GPU by the kernels for its steps."""
    sums = linearise(chunk, scale)
    C = sums.C + chunk.problem.depth_prior / chunk.inverse_depth.square()
    matrix, vector = eliminate(sums.E, C.clamp_min(fused.LEAST_CURVATURE), sums.w) if wanted else (None, None)
    return Condensed(sums.Hjj, sums.gj, sums.Hjk, sums.Hkk, sums.gk, matrix, vector, C, sums.w, sums.cost, sums.mass)


def linearise(chunk: Chunk, scale: float) -> Sums:
    """Linearise the measurements of a chunk at robust scale `scale` pixels."""
    if backend_for(chunk.state.params) == "triton":
        from vipe_kernels.gpu import adjustment

        return adjustment.linearise(chunk, scale)
    return linearise_tensors(chunk, scale)


def eliminate(E: Tensor, C: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """E C^-1 E^T (S, W, W) and E C^-1 w (S, W) of S sources: E (S, W, P); C > 0 and w (S, P)."""
    if backend_for(E) == "triton":
        from vipe_kernels.gpu import schur

        return schur.eliminate(E, C, w)
    scaled = E / C.unsqueeze(1)
    return scaled @ E.transpose(1, 2), (scaled @ w.unsqueeze(-1)).squeeze(-1)


def back_substitute(chunk: Chunk, scale: float, move: Tensor, shared: Tensor) -> Tensor:
    """E^T dx of the source keyframes of a chunk, (S, P). move (E, 6): of each destination camera relative to its source, in its tangent;
    shared (n,): of the free intrinsics."""
    chosen = backend_for(chunk.state.params)
    if chosen == "triton":
        from vipe_kernels.gpu import adjustment

        return adjustment.back_substitute(chunk, scale, move, shared)
    return (back_substitute_compiled if chosen == "compiled" else back_substitute_tensors)(chunk, scale, move, shared)


def _compiled_camera(problem: Problem, state: State) -> tuple[NDArray[np.float64], int, NDArray[np.int64]]:
    """Parameters, code of the model and codes of the free intrinsics, as the loops of `fused` take them."""
    return state.params.numpy(), fused.MODEL_CODES[problem.model], _intrinsic_codes(problem)


def _intrinsic_codes(problem: Problem) -> NDArray[np.int64]:
    """Codes (n,) of the free intrinsics."""
    return np.array([fused.INTRINSIC_CODES[free.name] for free in problem.intrinsics], np.int64)


def _compiled_points(chunk: Chunk) -> tuple[Any, ...]:
    """Cameras and points of a chunk as the loops of `fused` take them."""
    return (chunk.stretch.starts, *(x.contiguous().numpy() for x in (*chunk.relative, chunk.rays[0], chunk.inverse_depth)))


def _compiled_lens(chunk: Chunk) -> tuple[Any, ...]:
    """Measurements of a chunk and the lens as the loops of `fused` take them."""
    params, code, _ = _compiled_camera(chunk.problem, chunk.state)
    return (chunk.stretch.target.numpy(), chunk.stretch.weight.numpy(), params, code, fused.view_limit(params, chunk.problem.model))


def _compiled_arguments(chunk: Chunk) -> tuple[Any, ...]:
    """What both loops of `fused` over a chunk that know of slopes take."""
    codes = _compiled_camera(chunk.problem, chunk.state)[2]
    return (*_compiled_points(chunk), chunk.free_depth.contiguous().numpy(), *_compiled_lens(chunk), codes, chunk.rays[1].numpy())


def back_substitute_compiled(chunk: Chunk, scale: float, move: Tensor, shared: Tensor) -> Tensor:
    """`back_substitute` by the loops of `fused`."""
    common, moves = _compiled_arguments(chunk), (move.contiguous().numpy(), shared.contiguous().numpy())
    out = np.zeros((chunk.sources, chunk.points))

    def task(a: int, b: int) -> None:
        fused.back_substitute(a, b, *common, scale * scale, chunk.problem.near, *moves, out)

    parallel.spans(task, len(out), chunk.stretch.weight.numel())
    return torch.from_numpy(out)


def substitute(stretch: Stretch, kept: Tensor, C: Tensor, moves: Tensor, shared: Tensor) -> Tensor:
    """`back_substitute` from what `condense` kept, with C (S, P): moves (K, 6) of all cameras."""
    span, start = len(kept), stretch.keyframes.start
    out = np.zeros((span, kept.shape[2]))
    given = (stretch.destination, kept, C.contiguous(), moves, shared.contiguous())
    common = (start, stretch.starts, *(x.numpy() for x in given), out)
    parallel.spans(lambda a, b: fused.substitute(a, b, *common), span, kept.numel() // 8)
    return torch.from_numpy(out)


def back_substitute_tensors(chunk: Chunk, scale: float, move: Tensor, shared: Tensor) -> Tensor:
    """`back_substitute` by tensor operations."""
    terms = _terms(chunk, scale)
    shift = (terms.J @ move[:, None, :, None]).squeeze(-1)
    if chunk.problem.intrinsics:
        shift = shift + terms.Jk @ shared
    out = chunk.state.params.new_zeros(chunk.sources, chunk.points)
    return out.index_add_(0, chunk.stretch.source, _dot(terms.Jd, shift) * terms.rw)


def condense_compiled(chunk: Chunk, scale: float, wanted: bool = True, keep: bool = False) -> Condensed:
    """`condense` by the loops of `fused`."""
    edges, span, n, points, width = len(chunk.stretch.destination), chunk.sources, len(chunk.problem.intrinsics), chunk.points, chunk.width
    common, problem = _compiled_arguments(chunk), chunk.problem
    shapes = ((edges, 6, 6), (edges, 6), (edges, 6, n), (span, n, n), (span, n), (span, width, width), (span, width), (span, points))
    sums = zeros_together(*shapes, (span, points), (span, 2))
    kept = np.empty((span if wanted and keep else 0, width, points))

    def task(a: int, b: int) -> None:
        robust = (scale * scale, problem.near, problem.rotation_only, problem.depth_prior, wanted)
        fused.condense(a, b, *common, *robust, kept, *sums)

    parallel.spans(task, span, edges * points)
    *by_source, totals = sums
    by_source[3:5] = (x.sum(0) for x in by_source[3:5])
    Hjj, gj, Hjk, Hkk, gk, matrix, vector, C, w = (torch.from_numpy(x) for x in by_source)
    cost, mass = totals.sum(0).tolist()
    found = Condensed(Hjj, gj, Hjk, Hkk, gk, matrix, vector, C, w, cost, mass, torch.from_numpy(kept) if len(kept) else None)
    return found if wanted else replace(found, matrix=None, vector=None)


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


def _terms(chunk: Chunk, scale: float) -> _Terms:
    problem, state, src, (r, t), (rays, d_ray) = chunk.problem, chunk.state, chunk.stretch.source, chunk.relative, chunk.rays
    dtype = state.params.dtype
    d = chunk.inverse_depth[src]
    point = rays[src] @ r.transpose(-1, -2) + t[:, None] * d.unsqueeze(-1)
    uv, A, B = cameras.project_with_jacobian(point, state.params, problem.model, _intrinsic_columns(problem))
    error = chunk.stretch.target.to(dtype) - uv
    squared = error[..., 0].square() + error[..., 1].square()
    weight = chunk.stretch.weight.to(dtype)
    seen = (point[..., 2] > problem.near) & cameras.in_view(point, state.params, problem.model)
    shape = scale * scale / (scale * scale + squared)
    # a point that the camera cannot see is an outlier at its worst, so that no step is rewarded for hiding points
    cost = float((weight * torch.where(seen, squared * shape, scale * scale)).sum())
    weight = weight * seen
    J = torch.cat([A * d[..., None, None], torch.cross(point.unsqueeze(-2).expand_as(A), A, dim=-1)], -1)
    if problem.rotation_only:
        J[..., :3] = 0.0
    Jd = (A.flatten(1, 2) @ t.unsqueeze(-1)).view_as(error) * chunk.free_depth[src].to(dtype)[:, None, None]
    Jk = J[..., :0]
    if problem.intrinsics:
        Jk = B @ _intrinsic_basis(problem, state.params)
        Jk = Jk + A[..., :2] @ (r[:, None, :2, :2] @ d_ray[src]) + A[..., 2:] @ (r[:, None, 2:, :2] @ d_ray[src])
    return _Terms(error, J, Jd, Jk, weight * shape * shape, cost, float((weight * shape).sum()))


def linearise_tensors(chunk: Chunk, scale: float) -> Sums:
    """`linearise` by tensor operations, on any device and in any floating type."""
    problem, zeros = chunk.problem, chunk.state.params.new_zeros
    n, points, local, span = len(problem.intrinsics), chunk.points, chunk.stretch.source, chunk.sources
    edges_n, terms = len(local), _terms(chunk, scale)
    error, J, Jd, Jk, rw = terms.error, terms.J, terms.Jd, terms.Jk, terms.rw
    WJ = J * rw[..., None, None]
    flat = J.reshape(edges_n, -1, 6).transpose(1, 2)
    gj = (WJ.reshape(edges_n, -1, 6).transpose(1, 2) @ error.reshape(edges_n, -1, 1)).squeeze(-1)
    Ej = _inner(WJ, Jd)
    Jd_w = Jd * rw.unsqueeze(-1)
    C = zeros(span, points).index_add_(0, local, _dot(Jd, Jd_w))
    w = zeros(span, points).index_add_(0, local, _dot(Jd_w, error))
    E = zeros(span, chunk.width, points)
    place = (6 * chunk.stretch.place)[:, None] + torch.arange(6, device=local.device)
    E[local[:, None], place] = Ej.transpose(1, 2)
    E[:, :6].index_add_(0, local, -(Ej @ adjoint(*chunk.relative)).transpose(1, 2))
    if problem.rotation_only:
        E[:, :3] = 0.0
    Hjk, Hkk, gk = zeros(edges_n, 6, n), zeros(n, n), zeros(n)
    if n:
        WJk = Jk * rw[..., None, None]
        Hjk, Hkk = flat @ WJk.reshape(edges_n, -1, n), Jk.reshape(-1, n).T @ WJk.reshape(-1, n)
        gk = WJk.reshape(-1, n).T @ error.ravel()
        E[:, -n:].index_add_(0, local, _inner(WJk, Jd).transpose(1, 2))
    return Sums(flat @ WJ.reshape(edges_n, -1, 6), gj, Hjk, Hkk, gk, E, C, w, terms.cost, terms.mass)


def _build(problem: Problem, state: State, scale: float, plan: _Plan, keep: bool = False) -> _System:
    """Linearise all measurements at `state` and eliminate the depths; keep E."""
    n, kept = len(problem.intrinsics), []
    C, w = torch.zeros_like(state.inverse_depth), torch.zeros_like(state.inverse_depth)
    reduced = Reduced(plan.pattern, n, state.params)
    cost: float | Tensor = 0.0
    mass: float | Tensor = 0.0
    for number, chunk in enumerate(plan.over(problem, state)):
        found = condense(chunk, scale, reduced.size > 0, keep)
        kept.append(found.kept)
        cost, mass = cost + found.cost, mass + found.mass
        C[chunk.keyframes], w[chunk.keyframes] = found.C, found.w
        if reduced.size:
            couple(chunk, found, reduced, number)
    for position, (precision, gap) in enumerate(_priors(problem, state)):
        reduced.corner[position, position] += precision
        reduced.shared[position] += precision * gap
        cost += precision * gap * gap
    return _System(reduced, float(cost), float(mass), C.clamp_min_(fused.LEAST_CURVATURE), w, kept, scale)


def couple(chunk: Chunk, found: Condensed, reduced: Reduced, number: int) -> None:
    """Add to the reduced system what the measurements of a chunk, its `number`-th, say of cameras and intrinsics. The Hessians of
    destination cameras are carried over to the sources."""
    compiled = backend_for(chunk.state.params) == "compiled"
    (couple_compiled if compiled else couple_tensors)(chunk, found, reduced, number)


def couple_compiled(chunk: Chunk, found: Condensed, reduced: Reduced, number: int) -> None:
    """`couple` by the loops of `fused`."""
    assert found.matrix is not None
    assert found.vector is not None
    given = (chunk.source_tangent, found.Hjj, found.gj, found.Hjk, found.Hkk, found.gk, found.matrix, found.vector)
    where = (reduced.pattern.slots[number], reduced.pattern.tables[number])
    into = (reduced.blocks, reduced.border, reduced.corner, reduced.poses, reduced.shared)
    fused.couple(chunk.stretch.starts, *(x.contiguous().numpy() for x in (*given, *where)), *(x.numpy() for x in into))


def couple_tensors(chunk: Chunk, found: Condensed, reduced: Reduced, number: int) -> None:
    """`couple` by tensor operations, on any device."""
    assert found.matrix is not None
    assert found.vector is not None
    local, at, n = chunk.stretch.source, chunk.stretch.place, len(chunk.problem.intrinsics)
    matrix, vector = -found.matrix, -found.vector
    back = -chunk.source_tangent.transpose(1, 2)
    Hij = back @ found.Hjj
    # rows of each source: [own camera, each destination camera, intrinsics]
    wide = matrix.shape[1] - n
    own, six = torch.zeros_like(at), torch.arange(6, device=at.device)
    for rows, columns, block in (
        (own, own, Hij @ back.transpose(1, 2)),
        (at, at, found.Hjj),
        (own, at, Hij),
        (at, own, Hij.transpose(1, 2)),
    ):
        place = (local[:, None, None], (6 * rows[:, None] + six)[:, :, None], (6 * columns[:, None] + six)[:, None])
        matrix.index_put_(place, block, accumulate=True)
    vector.index_put_((local[:, None], 6 * own[:, None] + six), (back @ found.gj.unsqueeze(-1)).squeeze(-1), accumulate=True)
    vector.index_put_((local[:, None], 6 * at[:, None] + six), found.gj, accumulate=True)
    if n:
        tail = wide + torch.arange(n, device=at.device)
        for rows, block in ((own, back @ found.Hjk), (at, found.Hjk)):
            matrix.index_put_((local[:, None, None], (6 * rows[:, None] + six)[:, :, None], tail), block, accumulate=True)
        matrix[0, wide:, wide:] += found.Hkk
        vector[0, wide:] += found.gk
    reduced.add(number, matrix, vector)


def _priors(problem: Problem, state: State) -> list[tuple[float, float]]:
    """Precision of the prior of each free intrinsic (0: none), and how far its mean is from the value."""
    if not problem.intrinsics:
        return []
    params = state.params.tolist()
    values = [math.log(params[0]) if free.name == "focal" else params[SLOTS[free.name][0]] for free in problem.intrinsics]
    known = [(_precision(free), free) for free in problem.intrinsics]
    return [(precision, free.prior_mean - value if precision else 0.0) for (precision, free), value in zip(known, values, strict=True)]


def _precision(free: Intrinsic) -> float:
    """Of the prior of an intrinsic; 0: none."""
    return 0.0 if free.prior_std == math.inf else 1.0 / free.prior_std**2


def _cost(problem: Problem, state: State, scale: float, plan: _Plan) -> tuple[float, float]:
    """Robust cost and mass at `state`, as of `_build` without the system."""
    cost, mass = sum(precision * gap * gap for precision, gap in _priors(problem, state)), 0.0
    if backend_for(state.params) == "compiled":
        passes = (_cost_compiled(chunk, scale) for chunk in plan.over(replace(problem, intrinsics=()), state))
    else:
        passes = ((float(sums.cost), float(sums.mass)) for sums in (linearise(chunk, scale) for chunk in plan.over(problem, state)))
    for more in passes:
        cost, mass = cost + more[0], mass + more[1]
    return cost, mass


def _cost_compiled(chunk: Chunk, scale: float) -> tuple[float, float]:
    common, totals = (*_compiled_points(chunk), *_compiled_lens(chunk)), np.zeros((chunk.sources, 2))

    def task(a: int, b: int) -> None:
        fused.cost(a, b, *common, scale * scale, chunk.problem.near, totals)

    parallel.spans(task, len(totals), chunk.stretch.weight.numel())
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
    delta = system.reduced.solve(damping)
    pose, shared = delta[: 6 * len(free)].view(-1, 6), delta[6 * len(free) :]
    moves = torch.zeros(len(problem.uv), 6, dtype=delta.dtype, device=delta.device)
    moves[free] = pose
    left = system.w.clone()
    for chunk, kept in zip(plan.over(problem, state), system.kept, strict=True):
        if kept is None:
            left[chunk.keyframes] -= back_substitute(chunk, system.scale, chunk.between(moves), shared)
        else:
            left[chunk.keyframes] -= substitute(chunk.stretch, kept, system.C[chunk.keyframes], moves, shared)
    rotation, translation = perturb(moves, state.rotation, state.translation)
    depth = move_depths(state.inverse_depth, left, system.C, problem.free_depth)
    return State(rotation, translation, depth, move_intrinsics(problem, state.params, shared))


def move_depths(depth: Tensor, left: Tensor, C: Tensor, free: Tensor) -> Tensor:
    """Inverse depths (K, P) after a step left / C of those that are free (K,): it halves or triples one at most."""
    if backend_for(depth) == "compiled":
        out = torch.empty(depth.shape, dtype=depth.dtype)
        fused.move_depths(*(x.contiguous().numpy() for x in (depth, left, C, free)), out.numpy())
        return out
    change = left / C * free[:, None]
    return (depth + change.clamp(-0.5 * depth, 2.0 * depth)).clamp(fused.FARTHEST, fused.NEAREST)


def move_intrinsics(problem: Problem, params: Tensor, shared: Tensor) -> Tensor:
    """Parameters (9,) after a step of the free intrinsics (n,), which is shortened where it is long."""
    if not problem.intrinsics:
        return params
    moved = params.double().cpu().numpy().copy()
    descent.move_intrinsics(_intrinsic_codes(problem), shared.double().cpu().numpy(), moved)
    return torch.from_numpy(moved).to(params)


def solve(problem: Problem, state: State, schedule: Schedule) -> tuple[State, Report]:
    """Minimise the robust cost by damped Gauss-Newton at each scale in turn. A step that raises the cost is taken back
    with more damping."""
    plan = _Plan.of(problem)
    return (solve_whole if _is_small(problem, plan) else solve_in_steps)(problem, state, schedule, plan)


def _is_small(problem: Problem, plan: _Plan) -> bool:
    """Whether `descent` takes a problem: by its size alone, as the last bits of its answer depend on it."""
    return (
        plan.keep
        and len(plan.stretches) == 1
        and len(plan.free) > 0
        and problem.edges.weight.numel() <= _SMALL
        and (problem.model == "pinhole" or not {"k1", "k2", "k3"} & {free.name for free in problem.intrinsics})
    )


def solve_whole(problem: Problem, state: State, schedule: Schedule, plan: _Plan) -> tuple[State, Report]:
    """`solve` by `descent`."""
    (stretch,) = plan.stretches
    params, model, codes = _compiled_camera(problem, state)
    given = (stretch.source, stretch.destination, stretch.target, stretch.weight)
    edges = (stretch.starts, *(x.contiguous().numpy() for x in given))
    points = tuple(x.contiguous().numpy() for x in (problem.uv, problem.free_depth))
    priors = np.array([(_precision(free), free.prior_mean) for free in problem.intrinsics], np.float64).reshape(-1, 2)
    lens = (model, fused.view_limit(params, problem.model), codes, priors)
    slots, table = plan.pattern.slots[0], plan.pattern.tables[0]
    pattern = tuple(x.contiguous().numpy() for x in (slots, table, plan.free, plan.pattern.own))
    found = [x.contiguous().clone().numpy() for x in (state.rotation, state.translation, state.inverse_depth, state.params)]
    rules = (problem.depth_prior, problem.near, problem.rotation_only)
    when = (np.array(schedule.scales, np.float64), np.array(schedule.steps, np.int64), schedule.tolerance, schedule.damping)
    trace = np.empty((sum(schedule.steps), 2))
    steps, cost, mass = descent.descend(
        stretch.keyframes.start, edges, points, lens, pattern, plan.pattern.elimination.arrays, rules, when, *found, trace
    )
    if steps < 0:
        raise np.linalg.LinAlgError("the cameras are not determined")
    report = Report(cost, steps, mass, [(float(a), float(b)) for a, b in trace[:steps]])
    return State(*(torch.from_numpy(x) for x in found)), report


def solve_in_steps(problem: Problem, state: State, schedule: Schedule, plan: _Plan) -> tuple[State, Report]:
    """`solve` step by step, of any size and on any device."""
    report = Report()
    damping = schedule.damping
    for scale, steps in zip(schedule.scales, schedule.steps, strict=True):
        system = _build(problem, state, scale, plan, plan.keep)
        cost, mass = system.cost, system.mass
        taken, attempts = 0, 0
        while taken < steps and attempts < 2 * steps:
            attempts += 1
            candidate = _step(problem, state, system, damping, plan)
            trial = _build(problem, candidate, scale, plan, plan.keep) if taken + 1 < steps else None  # nothing follows the last step
            tried = (trial.cost, trial.mass) if trial else _cost(problem, candidate, scale, plan)
            if tried[0] <= cost * descent.NO_WORSE:
                gain = (cost - tried[0]) / max(cost, 1e-12)
                state, system, taken = candidate, trial or system, taken + 1
                cost, mass = tried
                damping = max(damping / descent.EASED, descent.LEAST_DAMPING)
                report.trace.append((scale, cost))
                if gain < schedule.tolerance:
                    break
            else:
                damping = min(damping * descent.RAISED, descent.MOST_DAMPING)
                if damping > descent.GIVEN_UP:
                    break
        damping = schedule.damping
        report.steps += taken
        report.cost, report.mass = cost, mass
    return state, report


@dataclass(frozen=True)
class Posterior:
    """Uncertainty at a solution, for unit noise of a measurement of weight 1 (pixels); multiply by the noise found.

    position_std (K,) in the unit of translation: with one fixed keyframe, which only chooses the world, after the similarity that fits all
    positions to the truth best, as trajectories are compared, so that their RMS is the ATE to be expected; with more, relative to those.
    intrinsic_std (n,), log focal or k; depth_std (K, P): of each inverse depth with the cameras held.
    """

    position_std: Tensor
    intrinsic_std: Tensor
    depth_std: Tensor


def posterior(problem: Problem, state: State, scale: float) -> Posterior:
    """Posterior of the free unknowns from the reduced system, at robust scale `scale` pixels."""
    plan = _Plan.of(problem)
    system = _build(problem, state, scale, plan)
    free, count = plan.free, len(problem.uv)
    alone = len(free) == count - 1
    moves = similarities(state) if alone else state.translation.new_zeros(count, 3, 0)
    along, gauge = moves.new_zeros(len(free), 6, moves.shape[2]), moves.new_zeros(len(free), 6)
    along[:, :3] = moves[free]
    if alone:
        gauge[:, :3] = state.translation[free]
    found = system.reduced.covariance(gauge.ravel(), system.reduced.barely(), along.flatten(0, 1))
    # what is left of the covariance when the similarity that fits best is taken out (S-transformation; Baarda 1973)
    own, cross = moves.new_zeros(count, 3, 3), torch.zeros_like(moves)
    own[free], cross[free] = found.positions, found.cross.view_as(along)[:, :3]
    fit = torch.linalg.pinv(torch.einsum("kia,kib->ab", moves, moves), rtol=_SAME, hermitian=True)
    both = moves @ fit
    common = torch.einsum("kia,kib->ab", moves, cross)
    variance = own - cross @ both.mT - both @ cross.mT + both @ common @ both.mT
    position = variance.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(0).sqrt()
    return Posterior(position, found.intrinsics.diagonal().clamp_min(0).sqrt(), system.C.rsqrt())


def similarities(state: State) -> Tensor:
    """How the seven similarities of the world move each camera, in its own axes as the tangent of its translation has it: (K, 3, 7)."""
    centre = -(state.rotation.mT @ state.translation.unsqueeze(-1)).squeeze(-1)
    arm = centre - centre.mean(0)
    arm = arm / arm.square().sum(-1).mean().sqrt().clamp_min(1e-12)
    eye = torch.eye(3, dtype=arm.dtype, device=arm.device).expand(len(arm), 3, 3)
    return -state.rotation @ torch.cat([eye, -skew(arm), arm.unsqueeze(-1)], -1)


def intrinsic_std(problem: Problem, state: State, scale: float) -> Tensor:
    """`intrinsic_std` (n,) of `posterior` alone, which costs no more than a step."""
    reduced = _build(problem, state, scale, _Plan.of(problem)).reduced
    return reduced.intrinsic_covariance(reduced.barely()).diagonal().clamp_min(0).sqrt()


def scores(problem: Problem, state: State, scale: float) -> tuple[Tensor, Tensor]:
    """What the measurements say of the free intrinsics with poses and depths eliminated and priors left out: the Hessian (n, n) for unit
    noise, and the gradient by point (K, P, n), whose sum is 0 where they settle the intrinsics by themselves."""
    bare = replace(problem, intrinsics=tuple(replace(free, prior_std=float("inf")) for free in problem.intrinsics))
    n, plan = len(bare.intrinsics), _Plan.of(bare, 0.2)
    whole = _build(bare, state, scale, plan).reduced
    moves = state.params.new_zeros(len(bare.uv), 6, n)
    moves[plan.free] = -whole.cameras_by_intrinsics(whole.barely()).view(-1, 6, n)
    summed = _scores_compiled if backend_for(state.params) == "compiled" else _scores_tensors
    hessian, gradient = moves.new_zeros(n, n), moves.new_zeros(*bare.uv.shape[:2], n)
    for chunk in plan.over(bare, state):
        own = moves[chunk.keyframes][chunk.stretch.source]
        more, gradient[chunk.keyframes] = summed(chunk, scale, moves[chunk.stretch.destination] - chunk.source_tangent @ own)
        hessian += more
    return hessian, gradient


def _scores_compiled(chunk: Chunk, scale: float, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Of the measurements of a chunk, by the loops of `fused`: the Hessian (n, n) and the gradient (S, P, n). moves (E, 6, n): of each
    destination camera relative to its source, in its tangent, with each intrinsic."""
    n = len(chunk.problem.intrinsics)
    common, steps = _compiled_arguments(chunk), moves.transpose(1, 2).contiguous().numpy()
    hessian, gradient = np.zeros((chunk.sources, n, n)), np.zeros((chunk.sources, chunk.points, n))

    def task(a: int, b: int) -> None:
        fused.scores(a, b, *common, scale * scale, chunk.problem.near, chunk.problem.depth_prior, steps, hessian, gradient)

    parallel.spans(task, chunk.sources, chunk.stretch.weight.numel())
    return torch.from_numpy(hessian.sum(0)), torch.from_numpy(gradient)


def _scores_tensors(chunk: Chunk, scale: float, moves: Tensor) -> tuple[Tensor, Tensor]:
    """The same by tensor operations."""
    local, terms, n = chunk.stretch.source, _terms(chunk, scale), moves.shape[2]
    slope = terms.Jk + terms.J @ moves[:, None]
    zeros = slope.new_zeros(chunk.sources, chunk.points)
    C = zeros.index_add(0, local, _dot(terms.Jd, terms.Jd) * terms.rw) + chunk.problem.depth_prior / chunk.inverse_depth.square()
    gradient, by_depth = (slope.new_zeros(chunk.sources, chunk.points, n) for _ in range(2))
    by_depth.index_add_(0, local, _inner(slope, terms.Jd) * terms.rw.unsqueeze(-1))
    slope = slope - terms.Jd.unsqueeze(-1) * (by_depth / C.unsqueeze(-1))[local].unsqueeze(2)
    gradient.index_add_(0, local, _inner(slope, terms.error) * terms.rw.unsqueeze(-1))
    return slope.reshape(-1, n).T @ (slope * terms.rw[..., None, None]).reshape(-1, n), gradient
