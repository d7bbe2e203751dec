"""Camera paths as lines: the path itself, frusta, and the colours that tell segments and keyframes apart. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.viewer.cloud import rays

Lines = NDArray[np.float32]
"""(n, 2, 3): both ends of n line segments."""
Colour = tuple[int, int, int]

SEGMENTS: tuple[Colour, ...] = ((0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233))
"""One per segment, repeated beyond four. All colours here are told apart with any colour vision (Okabe and Ito, 2008)."""
KEYFRAME: Colour = (230, 159, 0)
CURRENT: Colour = (213, 94, 0)
REFERENCE: Colour = (20, 20, 20)
OTHER: Colour = (150, 150, 150)


def segment_colour(segment: int) -> Colour:
    """The colour of one segment."""
    return SEGMENTS[segment % len(SEGMENTS)]


def path_lines(cam2world: NDArray[np.float64], tracked: NDArray[np.bool_], segment: NDArray[np.int32]) -> tuple[Lines, NDArray[np.uint8]]:
    """Lines between consecutive tracked cameras of one segment, and their colours (n, 2, 3) uint8.

    cam2world (T, 4, 4); tracked (T,); segment (T,). Frames that were not tracked are skipped, not bridged across segments.
    """
    rows = np.flatnonzero(tracked)
    first, second = rows[:-1], rows[1:]
    joined = segment[first] == segment[second]
    first, second = first[joined], second[joined]
    lines = np.stack([cam2world[first, :3, 3], cam2world[second, :3, 3]], axis=1).astype(np.float32)
    palette = np.array(SEGMENTS, np.uint8)[segment[first] % len(SEGMENTS)]
    return lines, np.repeat(palette[:, None], 2, axis=1)


def polyline(positions: NDArray[np.float64]) -> Lines:
    """Lines through (n, 3) positions in their order."""
    return np.stack([positions[:-1], positions[1:]], axis=1).astype(np.float32)


def frustum_lines(cam2world: NDArray[np.float64], camera: Calibration, length: float) -> Lines:
    """Eight lines per camera: from its centre to the corners of the picture at z = `length`, and around them. cam2world (n, 4, 4)."""
    right, bottom = camera.width - 0.5, camera.height - 0.5
    corners = rays(camera, np.array([-0.5, right, right, -0.5]), np.array([-0.5, -0.5, bottom, bottom]))
    corners = np.nan_to_num(corners, nan=0.0) * length
    world = np.einsum("nij,kj->nki", cam2world[:, :3, :3], corners) + cam2world[:, None, :3, 3]
    centre = np.repeat(cam2world[:, None, :3, 3], 4, axis=1)
    spokes, border = np.stack([centre, world], axis=2), np.stack([world, np.roll(world, -1, axis=1)], axis=2)
    return np.concatenate([spokes, border], axis=1).reshape(-1, 2, 3).astype(np.float32)


def vertical_view(camera: Calibration) -> float:
    """Vertical field of view of the picture in radians, without distortion."""
    return float(2 * np.arctan(camera.height / (2 * camera.params[1])))


def up_direction(cam2world: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) unit vector: the mean of what the cameras call up, for scenes without gravity. cam2world (n, 4, 4), n > 0."""
    up = -cam2world[:, :3, 1].mean(axis=0)
    length = float(np.linalg.norm(up))
    return up / length if length > 1e-6 else -cam2world[0, :3, 1]
