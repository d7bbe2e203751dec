"""Tracks of keyframe points: where a point that bundle adjustment placed is seen in the other keyframes, measured in their pixels.

A grid point of a keyframe is one observation, exact by construction. In another keyframe its patch is searched for from where the point
projects to (pyramidal Lucas-Kanade), and the place found is taken only when it looks the same, the search leads back to where it began, the
place agrees with the geometry, and what the target itself knows of its depth there does not contradict. So each observation is a
measurement, and its distance from the projection is a real residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.results import BaPoses
from vipe_dag.sequence import FrameSequence

MAX_TARGETS = 16
"""Keyframes in which the points of one are looked for: those that should see most of them."""
WINDOW_PX = 15
ROUND_TRIP_PX = 0.5
ALIKE = 0.8
"""Lowest normalised correlation of the patches."""
RESIDUAL_PX = 3.0
"""Farthest that an observation may lie from the projection of its point, at working resolution."""
DEPTH_AGREES = 0.1
"""Largest relative difference of the point's depth from the target's grid points around the place."""

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Tracks:
    """N points and M observations of them, grouped by point, each point's own keyframe first.

    xyz (N, 3) float64 world; rgb (N, 3) uint8; point (M,) which of the points; row (M,) frame row; uv (M, 2) float64 pixel at working
    resolution; residual_px (M,) distance of uv from the projection.
    """

    xyz: Float
    rgb: NDArray[np.uint8]
    point: NDArray[np.int64]
    row: NDArray[np.int64]
    uv: Float
    residual_px: Float


def tracks_of(poses: BaPoses, camera: Calibration, frames: FrameSequence, segment: int) -> Tracks:
    """Tracks of at least two observations between the tracked keyframes of a segment; camera at working resolution."""
    chosen = [k for k, row in enumerate(poses.keyframe) if poses.tracked[row] and poses.segment[row] == segment]
    views = {k: _View.of(poses, camera, frames, k) for k in chosen}
    found = [_points_of(view, [other for other in views.values() if other is not view], camera, frames) for view in views.values()]
    return _joined(found)


@dataclass(frozen=True)
class _View:
    """A keyframe: its points uv, xyz (P, ...), grid inverse depth with NaN where none is known, and its picture in grey."""

    row: int
    cam2world: Float
    uv: Float
    xyz: Float
    tree: Any
    inverse_depth: Float
    spacing: float
    grey: NDArray[np.uint8]

    @classmethod
    def of(cls, poses: BaPoses, camera: Calibration, frames: FrameSequence, k: int) -> _View:
        import torch
        from scipy.spatial import cKDTree

        from vipe_kernels.cameras import unproject_valid

        row = int(poses.keyframe[k])
        uv = poses.point_uv[k][poses.valid[k]].astype(np.float64)
        inverse_depth = poses.inverse_depth[k][poses.valid[k]].astype(np.float64)
        ray, reached = unproject_valid(torch.from_numpy(uv), torch.from_numpy(camera.params.copy()), camera.camera_model)
        keep = reached.numpy() & np.isfinite(inverse_depth) & (inverse_depth > 0)
        uv, inverse_depth = uv[keep], inverse_depth[keep]
        pose = poses.cam2world[row]
        xyz = (ray.numpy()[keep] / inverse_depth[:, None]) @ pose[:3, :3].T + pose[:3, 3]
        spacing = float(np.sqrt(camera.width * camera.height / poses.valid[k].size))
        return cls(row, pose, uv, xyz, cKDTree(uv) if len(uv) else None, inverse_depth, spacing, frames.luma(row))

    def project(self, xyz: Float, camera: Calibration) -> tuple[Float, Float, NDArray[np.bool_]]:
        """Pixels (P, 2), depth (P,) and whether the point is in the picture (P,)."""
        import torch

        from vipe_kernels.cameras import in_view, project

        points = torch.from_numpy((xyz - self.cam2world[:3, 3]) @ self.cam2world[:3, :3])
        params = torch.from_numpy(camera.params.copy())
        uv, z = project(points, params, camera.camera_model).numpy(), points[:, 2].numpy()
        inside = in_view(points, params, camera.camera_model).numpy()
        return uv, z, inside & (uv >= 0).all(1) & (uv <= [camera.width - 1, camera.height - 1]).all(1)

    def contradicts(self, uv: Float, z: Float) -> NDArray[np.bool_]:
        """Whether the grid points around a pixel all lie at another depth: the place shows something else. Unknown is no contradiction."""
        if self.tree is None or not len(uv):
            return np.zeros(len(uv), bool)
        distance, nearest = self.tree.query(uv, k=min(4, len(self.uv)), distance_upper_bound=1.5 * self.spacing)
        distance, nearest = distance.reshape(len(uv), -1), nearest.reshape(len(uv), -1)
        known = np.isfinite(distance)
        relative = np.where(known, self.inverse_depth[np.where(known, nearest, 0)] * z[:, None] - 1, np.nan)
        agrees = np.abs(relative) < DEPTH_AGREES
        between = (relative < DEPTH_AGREES).any(1) & (relative > -DEPTH_AGREES).any(1)
        return known.any(1) & ~agrees.any(1) & ~between


def _points_of(view: _View, others: list[_View], camera: Calibration, frames: FrameSequence) -> Tracks:
    """Points of one keyframe that are found in at least one other."""
    point, row, uv, residual = [np.arange(len(view.uv))], [np.full(len(view.uv), view.row)], [view.uv], [np.zeros(len(view.uv))]
    for target, predicted, index in _targets(view, others, camera):
        seen, place, error = _search(view.grey, target.grey, view.uv[index], predicted)
        point.append(index[seen])
        row.append(np.full(int(seen.sum()), target.row))
        uv.append(place[seen])
        residual.append(error[seen])
    whole = Tracks(
        view.xyz, _colours(view, frames), np.concatenate(point), np.concatenate(row), np.concatenate(uv), np.concatenate(residual)
    )
    return _of_two_views(whole)


def _targets(view: _View, others: list[_View], camera: Calibration) -> list[tuple[_View, Float, NDArray[np.int64]]]:
    """The other keyframes that should see most of the points: where each of them should be, and which those are."""
    found = []
    for target in others:
        uv, z, visible = target.project(view.xyz, camera)
        index = np.flatnonzero(visible)
        index = index[~target.contradicts(uv[index], z[index])]
        if len(index):
            found.append((target, uv[index], index))
    return sorted(found, key=lambda entry: -len(entry[2]))[:MAX_TARGETS]


def _search(here: NDArray[np.uint8], there: NDArray[np.uint8], uv: Float, predicted: Float) -> tuple[NDArray[np.bool_], Float, Float]:
    """Lucas-Kanade from the prediction and back: accepted (P,), places (P, 2), distance from the prediction (P,)."""
    import cv2

    options: dict[str, Any] = {"winSize": (WINDOW_PX, WINDOW_PX), "maxLevel": 1, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    start, guess = (np.ascontiguousarray(points, np.float32).reshape(-1, 1, 2) for points in (uv, predicted))
    place, forward, _ = cv2.calcOpticalFlowPyrLK(here, there, start, guess.copy(), **options)
    back, backward, _ = cv2.calcOpticalFlowPyrLK(there, here, place, start.copy(), **options)
    found = place.reshape(-1, 2).astype(np.float64)
    error = np.linalg.norm(found - predicted, axis=1)
    returned = np.linalg.norm(back.reshape(-1, 2) - uv, axis=1) < ROUND_TRIP_PX
    inside = ((found >= 0) & (found <= [there.shape[1] - 1, there.shape[0] - 1])).all(1)
    taken = forward.ravel().astype(bool) & backward.ravel().astype(bool) & returned & inside & (error < RESIDUAL_PX)
    taken[taken] = _correlation(here, uv[taken], there, found[taken]) > ALIKE
    return taken, found, error


def _correlation(here: NDArray[np.uint8], uv: Float, there: NDArray[np.uint8], place: Float) -> Float:
    """Normalised correlation (P,) of the patches around uv and place (P, 2); 0 where one of them is flat."""
    from scipy.ndimage import map_coordinates

    reach = np.arange(WINDOW_PX) - WINDOW_PX // 2
    patches = []
    for picture, centre in ((here, uv), (there, place)):
        lines, columns = centre[:, 1, None, None] + reach[:, None], centre[:, 0, None, None] + reach
        values = map_coordinates(picture.astype(np.float32), np.broadcast_arrays(lines, columns), order=1, mode="nearest")
        values = values.reshape(len(centre), WINDOW_PX**2)
        patches.append(values - values.mean(1, keepdims=True))
    power = np.sqrt((patches[0] ** 2).sum(1) * (patches[1] ** 2).sum(1))
    return np.asarray((patches[0] * patches[1]).sum(1) / np.maximum(power, 1e-6), np.float64)


def _colours(view: _View, frames: FrameSequence) -> NDArray[np.uint8]:
    rgb = frames.rgb(view.row)
    column, line = np.rint(view.uv).astype(int).T
    return rgb[line.clip(0, len(rgb) - 1), column.clip(0, rgb.shape[1] - 1)]


def _of_two_views(tracks: Tracks) -> Tracks:
    """Only points with two observations or more, and observations in the order of points."""
    keep = np.bincount(tracks.point, minlength=len(tracks.xyz)) >= 2
    number = np.cumsum(keep) - 1
    order = np.argsort(tracks.point, kind="stable")
    order = order[keep[tracks.point[order]]]
    return Tracks(
        tracks.xyz[keep], tracks.rgb[keep], number[tracks.point[order]], tracks.row[order], tracks.uv[order], tracks.residual_px[order]
    )


def _joined(parts: list[Tracks]) -> Tracks:
    if not parts:
        return Tracks(
            np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros(0)
        )
    first = np.cumsum([0, *(len(part.xyz) for part in parts)])
    point = np.concatenate([part.point + start for part, start in zip(parts, first, strict=False)])
    return Tracks(
        np.concatenate([part.xyz for part in parts]),
        np.concatenate([part.rgb for part in parts]),
        point,
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.uv for part in parts]),
        np.concatenate([part.residual_px for part in parts]),
    )
