"""Which rows a row is triangulated against: far enough for parallax, near enough to look alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vipe_dag.results import BaPoses
from vipe_dag.stages.sparse_depth import SparseDepth
from vipe_kernels.cameras import in_view, project, unproject

_POINTS = 150  # of a row's sparse points, enough for a median
_MIN_OVERLAP = 0.4  # share of the points that the neighbour must see
_SLACK = 4.0  # a neighbour with less than 1/_SLACK of the wanted parallax is of no use


@dataclass(frozen=True)
class Neighbours:
    """Chooses neighbours by the parallax that the poses and the sparse points predict.

    wanted: median parallax, in pixels, of each neighbour on one side; max_gap: rows to look at on that side.
    """

    poses: BaPoses
    sparse: SparseDepth
    height: int
    width: int
    wanted: tuple[float, ...]
    max_gap: int

    def after(self, row: int) -> list[int]:
        """Rows later than `row`, at most one per wanted parallax, ascending."""
        return self._choose(row, range(row + 1, min(row + self.max_gap + 1, len(self.poses.tracked))))

    def before(self, row: int) -> list[int]:
        """Rows earlier than `row`, at most one per wanted parallax, ascending."""
        return self._choose(row, range(max(row - self.max_gap, 0), row))

    def _choose(self, row: int, candidates: range) -> list[int]:
        poses = self.poses
        usable = np.array([c for c in candidates if poses.tracked[c] and poses.segment[c] == poses.segment[row]], np.int64)
        uv, inverse_depth = self.sparse.seen_from(row)
        if not len(usable) or not len(uv):
            return []
        some = np.linspace(0, len(uv) - 1, min(_POINTS, len(uv))).astype(np.int64)
        parallax, overlap = self._parallax(row, usable, uv[some], inverse_depth[some])
        chosen: set[int] = set()
        for wish in self.wanted:
            fit = np.abs(np.log(np.maximum(parallax, 1e-6) / wish))
            fit[(overlap < _MIN_OVERLAP) | (fit > np.log(_SLACK))] = np.inf
            best = int(np.argmin(fit))
            if np.isfinite(fit[best]):
                chosen.add(int(usable[best]))
        return sorted(chosen)

    def _parallax(
        self, row: int, others: NDArray[np.int64], uv: NDArray[np.float32], inverse_depth: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Median parallax in pixels and share of points in view, per other row: flow less the flow of the rotation alone."""
        model, params = self.poses.camera_model, torch.tensor(self.poses.params)
        rays = unproject(torch.from_numpy(uv.astype(np.float64)), params, model)
        relative = torch.from_numpy(np.linalg.inv(self.poses.cam2world[others]) @ self.poses.cam2world[row])
        turned = rays @ relative[:, :3, :3].mT
        points = turned + relative[:, None, :3, 3] * torch.from_numpy(inverse_depth.astype(np.float64))[:, None]
        target = project(points, params, model)
        seen = in_view(points, params, model) & in_view(turned, params, model)
        seen &= (target >= 0).all(-1) & (target[..., 0] <= self.width - 1) & (target[..., 1] <= self.height - 1)
        shift = torch.where(seen, (target - project(turned, params, model)).norm(dim=-1), torch.nan)
        median = torch.nanmedian(shift, dim=1).values.nan_to_num(0.0)
        return median.numpy(), seen.double().mean(1).numpy()
