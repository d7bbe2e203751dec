"""Camera pose from points of known position (motion-only bundle adjustment), for many frames at once.

World points are homogeneous, [x y z w] with w an inverse depth, so points at infinity (w = 0) take part and determine rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vipe_kernels import cameras, fused, parallel
from vipe_kernels.backend import backend_for
from vipe_kernels.bundle import exp_se3
from vipe_kernels.tracking import spread

Float = NDArray[np.float64]

_SCALES = (16.0, 8.0, 4.0, 2.0, 1.5, 1.0)
_STEPS = 3
_SEARCHED, _SAMPLES = 256, 500
"""Points among which a pose is searched for, and how often at most: three of them suffice where a quarter of all are right."""
_AGREES = 3.0
"""Distance, in pixels of a 640-pixel picture, up to which a point agrees with a pose."""
_SEEN = 0.05
"""Weight that is more than a trace."""


@dataclass(frozen=True)
class Resection:
    """rotation (3, 3), translation (3,) world-to-camera; residual_px: weighted median residual; inliers: share of weight
    below 3 px (640-wide); agreeing: points that stand behind it, below 3 px with more than a trace of weight."""

    rotation: Float
    translation: Float
    residual_px: float
    inliers: float
    agreeing: int


@dataclass(frozen=True)
class Resections:
    """The same for F frames: rotation (F, 3, 3), translation (F, 3), residual_px (F,), inliers (F,), agreeing (F,) int64, and position_std
    (F,) for 1 px noise."""

    rotation: Tensor
    translation: Tensor
    residual_px: Tensor
    inliers: Tensor
    agreeing: Tensor
    position_std: Tensor


Minimum = tuple[Tensor, Tensor, Tensor, Tensor]
"""rotation (F, 3, 3), translation (F, 3), normal matrix (F, 6, 6) and distances (F, N) in pixels (1e6: out of view) at the last scale."""


def minimise_tensors(
    points: Tensor, targets: Tensor, weights: Tensor, model: str, params: Tensor, rotation: Tensor, translation: Tensor,
    scales: Sequence[float], steps: int,
) -> Minimum:  # fmt: skip
    """The minimisation of `resect_batch` by tensor operations, on any device; scales in pixels."""
    dtype = points.dtype
    eye = torch.eye(6, dtype=dtype, device=points.device)

    def evaluate(r: Tensor, t: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        camera = points[..., :3] @ r.transpose(-1, -2) + t[:, None] * points[..., 3:]
        uv, A, _ = cameras.project_with_jacobian(camera, params, model, columns=())
        error = targets - uv
        squared = error.square().sum(-1)
        front = (camera[..., 2] > 0.02 * camera.norm(dim=-1)) & cameras.in_view(camera, params, model)
        w = weights * front
        shape = scale * scale / (scale * scale + squared)
        missing = weights * ~front * scale * scale
        cost = (w * squared * shape + missing).sum(1)
        J = torch.cat([A * points[..., 3, None, None], torch.cross(camera.unsqueeze(-2).expand_as(A), A, dim=-1)], -1)
        WJ = J * (w * shape * shape)[..., None, None]
        H = J.reshape(len(J), -1, 6).transpose(1, 2) @ WJ.reshape(len(J), -1, 6)
        g = (WJ * error.unsqueeze(-1)).sum((1, 2))
        return cost, H, g, torch.where(front & (weights > 0), squared.sqrt(), torch.full_like(squared, 1e6))

    distance = torch.empty(0)
    H = eye.expand(len(points), 6, 6)
    for scale in scales:
        cost, H, g, distance = evaluate(rotation, translation, scale)
        for _ in range(steps):
            diagonal = torch.diag_embed(H.diagonal(dim1=1, dim2=2) * 1e-4 + 1e-9)
            delta = torch.linalg.solve(H + diagonal + 1e-9 * eye, g.unsqueeze(-1)).squeeze(-1)
            pending = torch.ones(len(points), dtype=torch.bool, device=points.device)
            for fraction in (1.0, 0.3):
                r, t = exp_se3(delta * fraction)
                r_new, t_new = r @ rotation, (r @ translation.unsqueeze(-1)).squeeze(-1) + t
                tried = evaluate(r_new, t_new, scale)
                better = pending & (tried[0] <= cost)
                rotation = torch.where(better[:, None, None], r_new, rotation)
                translation = torch.where(better[:, None], t_new, translation)
                cost, H, g, distance = (
                    torch.where(better.view(-1, *[1] * (old.dim() - 1)), new, old)
                    for new, old in zip(tried, (cost, H, g, distance), strict=True)
                )
                pending &= ~better
                if not bool(pending.any()):
                    break
    return rotation, translation, H, distance


def minimise_compiled(
    points: Tensor, targets: Tensor, weights: Tensor, model: str, params: Tensor, rotation: Tensor, translation: Tensor,
    scales: Sequence[float], steps: int,
) -> Minimum:  # fmt: skip
    """The same by the loops of `fused`; a frame that no longer improves is left early."""
    frames, count = weights.shape
    r, t = rotation.contiguous().clone().numpy(), translation.contiguous().clone().numpy()
    H, distance = np.zeros((frames, 6, 6)), np.zeros((frames, count))
    p, target, weight, k = (x.contiguous().numpy() for x in (points, targets, weights, params))
    limit = fused.view_limit(k, model)
    squared = np.square(np.asarray(scales, np.float64))

    def task(first: int, last: int) -> None:
        fused.resect(first, last, p, target, weight, k, fused.MODEL_CODES[model], limit, squared, steps, r, t, H, distance)

    parallel.spans(task, frames, weights.numel() * len(scales) * steps)
    return torch.from_numpy(r), torch.from_numpy(t), torch.from_numpy(H), torch.from_numpy(distance)


def resect_batch(
    points: Tensor,
    targets: Tensor,
    weights: Tensor,
    model: str,
    params: Tensor,
    rotation: Tensor,
    translation: Tensor,
    unit: float,
    scales: Sequence[float] = _SCALES,
    steps: int = _STEPS,
) -> Resections:
    """Minimise sum w rho(|project(R x + t w) - target|) over each frame's pose; Geman-McClure with shrinking scale.

    points (F, N, 4) homogeneous world; targets (F, N, 2) px; weights (F, N), 0 = absent; rotation (F, 3, 3), translation (F, 3) starts.
    unit: pixels per pixel of a 640-wide picture. A step whose cost rises at its scale is halved once, then dropped.
    """
    compiled, tensors = (minimise_compiled, sum_up_compiled), (minimise_tensors, sum_up_tensors)
    minimise, sum_up = compiled if backend_for(points) == "compiled" else tensors
    found = minimise(points, targets, weights, model, params, rotation, translation, tuple(s * unit for s in scales), steps)
    return sum_up(found, weights, unit)


def sum_up_tensors(found: Minimum, weights: Tensor, unit: float) -> Resections:
    """What a minimum says, by tensor operations, on any device; weights (F, N)."""
    rotation, translation, H, distance = found
    total = weights.sum(1).clamp_min(1e-12)
    near = distance < _AGREES * unit
    order = distance.argsort(1)
    cumulative = weights.gather(1, order).cumsum(1)
    middle = (cumulative < 0.5 * total[:, None]).sum(1).clamp_max(distance.shape[1] - 1)
    median = distance.gather(1, order).gather(1, middle[:, None]).squeeze(1)
    variance = torch.linalg.inv(H + torch.diag_embed(H.diagonal(dim1=1, dim2=2) * 1e-9 + 1e-9)).diagonal(dim1=1, dim2=2)[:, :3]
    # the camera centre is -R^T t; to first order its covariance is that of tau
    std = variance.clamp_min(0).sum(-1).sqrt()
    return Resections(rotation, translation, median, (weights * near).sum(1) / total, (near & (weights > _SEEN)).sum(1), std)


def sum_up_compiled(found: Minimum, weights: Tensor, unit: float) -> Resections:
    """The same by the loops of `fused`."""
    rotation, translation, H, distance = found
    out = np.empty((len(weights), 4))
    fused.sum_up(H.numpy(), distance.numpy(), weights.contiguous().numpy(), _AGREES * unit, _SEEN, out)
    median, inliers, agreeing, std = torch.from_numpy(out.T.copy())
    return Resections(rotation, translation, median, inliers, agreeing.long(), std)


def resect(
    points: Float,
    targets: Float,
    weights: Float,
    model: str,
    params: Float,
    starts: Sequence[tuple[Float, Float]],
    unit: float,
    search_below: float = 0.0,
) -> Resection | None:
    """One frame from several starts; the one that explains most weight wins. None with fewer than 6 points.

    points (N, 4), targets (N, 2), weights (N,); starts: (rotation (3, 3), translation (3,)) world-to-camera. Where none explains as much
    weight as `search_below`, a start is searched for that depends on no guess (`search`).
    """
    if (weights > 0).sum() < 6:
        return None
    found = _best(points, targets, weights, model, params, starts, unit)
    if found.inliers < search_below:
        start = search(points, targets, weights, model, params, unit)
        if start is not None:
            other = _best(points, targets, weights, model, params, [start], unit)
            found = max(found, other, key=lambda pose: _score(pose.inliers, pose.residual_px, unit))
    return found


def search(points: Float, targets: Float, weights: Float, model: str, params: Float, unit: float) -> tuple[Float, Float] | None:
    """World-to-camera pose (rotation (3, 3), translation (3,)) on which most of the nearer points agree, by three points at a time (P3P in
    RANSAC, scored as MSAC does: Fischler and Bolles 1981; Torr and Zisserman 2000). None: none was found. Arguments as of `resect`."""
    known = np.flatnonzero((weights > _SEEN) & (points[:, 3] > 1e-3 * np.median(points[:, 3])))
    if len(known) < 6:
        return None
    known = spread(known, _SEARCHED)
    space = np.ascontiguousarray(points[known, :3] / points[known, 3:])
    rays = cameras.unproject(torch.from_numpy(targets[known]), torch.from_numpy(params), model).numpy()
    settings = cv2.UsacParams()  # a third of the time of solvePnPRansac without, and it finds the pose where a quarter is right
    settings.threshold, settings.confidence, settings.maxIterations = _AGREES * unit / params[0], 0.999, _SAMPLES
    settings.score, settings.loMethod, settings.sampler = cv2.SCORE_METHOD_MSAC, cv2.LOCAL_OPTIM_NULL, cv2.SAMPLING_UNIFORM
    settings.isParallel, settings.randomGeneratorState = False, 1
    try:
        found, _, turn, translation, _ = cv2.solvePnPRansac(space, np.ascontiguousarray(rays[:, :2]), np.eye(3), None, params=settings)
    except cv2.error:  # raised instead of an answer where what agrees is degenerate
        return None
    return (cv2.Rodrigues(turn)[0], translation.ravel()) if found else None


def _score(inliers: Any, residual_px: Any, unit: float) -> Any:
    """By which of several poses is chosen: the share that agrees, then how well."""
    return inliers - 0.01 * residual_px / unit


def _best(
    points: Float, targets: Float, weights: Float, model: str, params: Float, starts: Sequence[tuple[Float, Float]], unit: float
) -> Resection:
    """The pose that explains most weight of those that starts lead to."""
    count = len(starts)
    rotation = torch.from_numpy(np.stack([r for r, _ in starts]))
    translation = torch.from_numpy(np.stack([t for _, t in starts]))
    found = resect_batch(
        torch.from_numpy(points).expand(count, -1, -1),
        torch.from_numpy(targets).expand(count, -1, -1),
        torch.from_numpy(weights).expand(count, -1),
        model,
        torch.from_numpy(params),
        rotation,
        translation,
        unit,
    )
    best = int(_score(found.inliers, found.residual_px, unit).argmax())
    return Resection(
        found.rotation[best].numpy(),
        found.translation[best].numpy(),
        float(found.residual_px[best]),
        float(found.inliers[best]),
        int(found.agreeing[best]),
    )
