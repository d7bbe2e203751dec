"""The rotation that takes some directions to others, compiled for the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vipe_kernels.compiled import compiled

Float = NDArray[np.float64]

SCALES = np.array([0.5, 0.2, 0.1, 0.05, 0.03, 0.02, 0.02, 0.02])
"""Of the kernel, one after the other: distances between unit rays, that is radians."""


def align_rays(a: Float, b: Float, weight: Float) -> Float:
    """The rotation (3, 3) that takes unit rays a (N, 3) to b (N, 3): weighted Kabsch, reweighted for outliers (Geman-McClure)."""
    rotation = np.eye(3)
    _align(a, b, weight, SCALES, rotation)
    return rotation


@compiled
def _align(a: Float, b: Float, weight: Float, scales: Float, rotation: Float) -> None:
    """In place, from the rotation that is given."""
    moment = np.empty((3, 3))
    for scale in scales:
        moment[:] = 0.0
        for k in range(len(a)):
            x, y, z = a[k]
            squared = 0.0
            for i in range(3):
                squared += (b[k, i] - (rotation[i, 0] * x + rotation[i, 1] * y + rotation[i, 2] * z)) ** 2
            shape = scale * scale / (scale * scale + squared)
            for i in range(3):
                pull = weight[k] * shape * shape * b[k, i]
                moment[i, 0] += pull * x
                moment[i, 1] += pull * y
                moment[i, 2] += pull * z
        u, _, vt = np.linalg.svd(moment)
        if np.linalg.det(u) * np.linalg.det(vt) < 0:
            u[:, 2] = -u[:, 2]
        rotation[:] = u @ vt
