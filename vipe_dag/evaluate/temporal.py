"""Does depth stay the same surface over time, once the motion of the camera is taken out? Needs poses, no reference depth.

Depth of one frame is carried into its neighbour by the relative pose and compared there with the neighbour's own, which is read between
pixels by bilinear interpolation of inverse depth: on planes that is exact, so the truth of a planar scene has no error at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.errors import EstimationError

if TYPE_CHECKING:
    from torch import Tensor

TAU = 1.05
PIXEL_STEP = 2
_MARGIN = 1e-6
"""Pixels outside the picture that rounding may lead to."""
_FEWEST = 32
"""Fewer pixels in common than this say nothing about a pair of frames."""


@dataclass(frozen=True)
class TimedDepth:
    """One frame: row on the frame dimension; z_depth (H, W), NaN = unknown; static (H, W) bool: nothing moves here; cam2world (4, 4).

    world: frames of different worlds (segments) are never compared.
    """

    row: int
    z_depth: NDArray[Any]
    static: NDArray[np.bool_]
    cam2world: NDArray[np.float64]
    world: int = 0


@dataclass(frozen=True)
class TemporalErrors:
    """Means over pairs of neighbouring frames, each carried both ways.

    pairs: compared; coverage: share of the known pixels carried over that meet known depth.
    tae_percent: temporal alignment error, 100 x mean over pairs of AbsRel(carried, there), of Chen et al., Video Depth Anything, CVPR 2025,
    eq. 4. tau5: mean share of pixels with max(carried / there, there / carried) < 1.05, the inlier ratio tau of Schroeppel et al., A
    Benchmark and a Baseline for Robust Multi-view Depth Estimation, 3DV 2022 (there with 1.03).
    flicker_percent: how far a frame departs from the mean of its two neighbours in static areas, 100 x mean over frames of the median of
    |log ratio to the one before + log ratio to the one after| / 2: a slow drift of scale cancels, jitter stays. None where no three
    frames in a row have static pixels in common.
    """

    pairs: int
    coverage: float
    tae_percent: float
    tau5: float
    flicker_percent: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def temporal_errors(frames: Iterable[TimedDepth], camera: Calibration, pixel_step: int = PIXEL_STEP) -> TemporalErrors:
    """Errors over frames in order; neighbours are frames of consecutive rows in one world, and three of them are held at a time.

    camera: at the size of the depth; depth and poses must share one scale. pixel_step: every n-th pixel along both axes is carried over.
    Raises EstimationError when no two neighbours have depth in common.
    """
    with _one_thread():
        return _errors(frames, _Grid(camera, pixel_step))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Arrays as small as one grid are slower with several threads of torch, and several times so where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _errors(frames: Iterable[TimedDepth], grid: _Grid) -> TemporalErrors:
    abs_rel: list[float] = []
    within: list[float] = []
    flicker: list[float] = []
    carried = met = pairs = 0
    before: _Held | None = None
    for frame in frames:
        held = _Held(frame, grid)
        if before is not None and before.frame.row + 1 == frame.row and before.frame.world == frame.world:
            forth, back = grid.log_ratio(before, held), grid.log_ratio(held, before)
            carried += int(before.known.sum()) + int(held.known.sum())
            ratios = [ratio[np.isfinite(ratio)] for ratio in (forth, back)]
            met += sum(len(ratio) for ratio in ratios)
            if min(len(ratio) for ratio in ratios) >= min(_FEWEST, grid.count):
                pairs += 1
                abs_rel += [float(np.abs(np.expm1(ratio)).mean()) for ratio in ratios]
                within += [float((np.abs(ratio) < np.log(TAU)).mean()) for ratio in ratios]
            if before.from_previous is not None:
                jitter = np.abs(before.from_previous + forth)[before.static] / 2
                jitter = jitter[np.isfinite(jitter)]
                flicker += [float(np.median(jitter))] if len(jitter) else []
            held.from_previous = back
        before = held
    if not pairs:
        raise EstimationError("no two consecutive frames have depth in common, so nothing can be said about its change over time")
    return TemporalErrors(
        pairs,
        met / carried,
        100 * float(np.mean(abs_rel)),
        float(np.mean(within)),
        100 * float(np.mean(flicker)) if flicker else None,
    )


class _Grid:
    """Rays through the pixels that are carried over."""

    def __init__(self, camera: Calibration, pixel_step: int) -> None:
        import torch

        from vipe_kernels.cameras import unproject_valid

        self.shape, self._model = (camera.height, camera.width), camera.camera_model
        self.v, self.u = (axis.ravel() for axis in np.mgrid[: camera.height : pixel_step, : camera.width : pixel_step])
        self.count = len(self.u)
        self._params = torch.from_numpy(camera.params.copy())
        rays, self.reached = unproject_valid(torch.from_numpy(np.stack([self.u, self.v], -1).astype(np.float64)), self._params, self._model)
        self._rays = rays

    def log_ratio(self, source: _Held, target: _Held) -> NDArray[np.float64]:
        """(count,) log of depth carried from source over depth found in target; NaN where either is unknown or out of the picture."""
        import torch
        from torch.nn.functional import grid_sample

        from vipe_kernels.cameras import in_view, project

        motion = torch.from_numpy(np.linalg.inv(target.frame.cam2world) @ source.frame.cam2world)
        points = (self._rays * source.depth[:, None]) @ motion[:3, :3].T + motion[:3, 3]
        uv = project(points, self._params, self._model)
        height, width = self.shape
        limit = torch.tensor([width - 1, height - 1], dtype=torch.float64)
        inside = ((uv > -_MARGIN) & (uv < limit + _MARGIN)).all(-1) & in_view(points, self._params, self._model)
        place = 2 * torch.minimum(uv.clamp_min(0), limit) / limit.clamp_min(1) - 1
        found = grid_sample(target.inverse[None, None], place[None, None], align_corners=True)[0, 0, 0]
        ratio = torch.log(points[:, 2] * found)
        return np.asarray(torch.where(inside & self.reached, ratio, torch.nan).numpy(), np.float64)


class _Held:
    """A frame prepared for comparison: depth (count,) at the grid, inverse depth of the whole picture; NaN where unknown."""

    def __init__(self, frame: TimedDepth, grid: _Grid) -> None:
        import torch

        if frame.z_depth.shape != grid.shape:
            raise EstimationError(f"row {frame.row}: depth of {frame.z_depth.shape}, but the camera is of {grid.shape}")
        z = frame.z_depth.astype(np.float64)
        z[~(np.isfinite(z) & (z > 0))] = np.nan
        self.frame = frame
        self.inverse: Tensor = torch.from_numpy(1 / z)
        self.depth: Tensor = torch.from_numpy(z[grid.v, grid.u])
        self.known = np.isfinite(z[grid.v, grid.u])
        self.static = frame.static[grid.v, grid.u]
        self.from_previous: NDArray[np.float64] | None = None
        """log_ratio at this frame's pixels, carried into the frame before."""
