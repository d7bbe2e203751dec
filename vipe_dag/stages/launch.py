"""How a map begins: a window of keyframes placed from several hypotheses, of which the robust cost chooses.

The cost of a short window has more than one basin: a plane turning one way explains almost the same motion as one turning the other
way, and forward motion almost the same as backward motion. Each hypothesis is adjusted with graduated non-convexity; the lowest cost wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from vipe_dag.stages.mapping import Map, pixels_schedule, tensor
from vipe_kernels import cameras, parallel

Float = NDArray[np.float64]

_PACE = 0.1
"""Step per keyframe of the moving hypotheses, in units of the starting depth."""
_ENOUGH = 40


def rotating(scene: Map, window: Sequence[int], pace: float) -> None:
    """Rotations chained from aligned rays, all points at depth 1, the camera moving `pace` forward from one keyframe to the next."""
    rotation, translation = np.eye(3), np.zeros(3)
    for position, k in enumerate(window):
        if position:
            turn = scene.relative_rotation(window[position - 1], k)
            rotation, translation = turn @ rotation, turn @ translation - np.array([0.0, 0.0, pace])
        scene.place(k, rotation, translation, np.ones(len(scene.m.keyframes[k].uv)))


def widest_pair(scene: Map, window: Sequence[int]) -> tuple[int, int] | None:
    """The two keyframes of a window with the most parallax among those that share enough points."""
    best, widest = None, 0.0
    for i, a in enumerate(window):
        for b in window[i + 1 :]:
            edge = scene.edges.get((a, b))
            if edge is None or (edge.weight > 0.05).sum() < _ENOUGH:
                continue
            spread = scene.rotation_residual(a, b) * min(1.0, (edge.weight > 0.05).sum() / (4 * _ENOUGH))
            if spread > widest:
                best, widest = (a, b), spread
    return best


def two_view(rays_a: Float, rays_b: Float, threshold: float) -> tuple[Float, Float, Float] | None:
    """Motion between two cameras by the five-point algorithm (Nister 2004) in MAGSAC++, from rays (N, 3), z = 1: rotation (3, 3),
    translation (3,) of unit length, and the inverse depth (N,) of each point in the first camera, which may be negative.

    Of the four motions that an essential matrix stands for, the one that puts most points in front of both cameras. threshold: of the
    distance to an epipolar line, in units of the focal length. None: no motion was found.
    """
    xa, xb = np.ascontiguousarray(rays_a[:, :2]), np.ascontiguousarray(rays_b[:, :2])
    cv2.setRNGSeed(7)
    try:
        essential, _ = cv2.findEssentialMat(xa, xb, np.eye(3), cv2.USAC_MAGSAC, 0.999, threshold)
    except cv2.error:  # raised instead of an answer where no sample gave a model (OpenCV 4.13)
        return None
    if essential is None or essential.shape != (3, 3):
        return None
    turn, other_turn, direction = cv2.decomposeEssentialMat(essential)
    found, most = None, -1
    for rotation in (turn, other_turn):
        turned = rays_a @ rotation.T
        for t in (direction.ravel(), -direction.ravel()):
            normal = np.cross(rays_b, t)
            depth = -(np.cross(rays_b, turned) * normal).sum(1) / np.maximum((normal * normal).sum(1), 1e-12)
            in_front = int(((depth > 0) & (turned[:, 2] + t[2] * depth > 0)).sum())
            if in_front > most:
                found, most = (rotation, t, depth), in_front
    return found


def from_pair(scene: Map, window: Sequence[int], pair: tuple[int, int] | None, most: int | None) -> bool:
    """Two-view geometry of the widest pair of a window, then resection of the others. False: no such pair, or no such geometry."""
    if pair is None:
        return False
    a, b = pair
    edge = scene.edges[pair]
    seen = edge.weight > 0.05
    index = edge.index[seen]
    target = tensor(edge.target[seen].astype(np.float64))
    rays_a, rays_b = scene.rays(a)[index], cameras.unproject(target, tensor(scene.params), scene.model).numpy()
    found = two_view(rays_a, rays_b, scene.m.unit / scene.params[0])
    if found is None:
        return False
    rotation, direction, depth = found
    pace = _PACE * max(1, abs(window.index(a) - window.index(b)))
    t, depth = direction * pace, depth / pace
    good = (depth > 1e-3) & (depth < 1e3)
    if good.sum() < _ENOUGH // 2:
        return False
    typical = float(np.median(depth[good]))
    known = np.ones(len(scene.m.keyframes[a].uv))
    known[index[good]] = depth[good] / typical
    scene.place(a, np.eye(3), np.zeros(3), known)
    scene.place(b, rotation, t * typical, np.ones(len(scene.m.keyframes[b].uv)))
    if scene.extend(b, [a]) is None:
        return False
    posed = [a, b]
    scene.adjust([b], [a], pixels_schedule((3.0, 1.5), (3, 3), scene.m.unit), most=most)
    for k in sorted((k for k in window if k not in pair), key=lambda k: min(abs(window.index(k) - window.index(p)) for p in pair)):
        near = sorted(posed, key=lambda p: abs(window.index(p) - window.index(k)))
        if scene.extend(k, [p for p in near if (p, k) in scene.edges][:4]) is None:
            return False
        posed.append(k)
    return True


def _turning(scene: Map, window: Sequence[int], pace: float) -> bool:
    rotating(scene, window, pace)
    return True


def launch(
    scene: Map,
    window: Sequence[int],
    pair: tuple[int, int] | None,
    scales: Sequence[float],
    thorough: bool,
    most: int | None = None,
) -> float:
    """Place a window by the best hypothesis, first keyframe at identity; returns its robust cost. Intrinsics stay as they are.

    pair: the `widest_pair`. thorough: try the moving hypotheses even where two-view geometry gave an answer. most: points of each keyframe
    that are adjusted.
    """
    hypotheses: list[Callable[[Map], bool]] = [
        lambda trial: from_pair(trial, window, pair, most),
        *(partial(_turning, window=window, pace=pace) for pace in (0.0, _PACE, -_PACE)),
    ]
    steps = (6,) + (5,) * (len(scales) - 1)

    def attempt(hypothesis: Callable[[Map], bool]) -> tuple[float, Map]:
        trial = scene.trial(scene.model, scene.params)
        placed = hypothesis(trial)
        schedule = pixels_schedule(scales, steps, scene.m.unit)
        return trial.adjust(window[1:], window[:1], schedule, most=most).cost if placed else float("inf"), trial

    first = [] if thorough else [attempt(hypotheses[0])]
    found = first if first and np.isfinite(first[0][0]) else first + parallel.each(attempt, hypotheses[len(first) :])
    lowest, best = min(found, key=lambda tried: tried[0])
    scene.steps += sum(trial.steps for _, trial in found)
    for k in window:
        scene.place(k, best.rotation[k], best.translation[k], best.inverse_depth[k])
    scene.anchor(window)
    scene.rescale(window)
    return lowest
