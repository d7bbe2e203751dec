"""Pictures and depth as a pinhole camera in the same place sees them, for programs that know no other lens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration


class Straight:
    """The pinhole of the same focal length, principal point and size as a camera, and its view of that camera's pictures.

    A wide lens sees more than fits: what lies outside is left out. What the lens does not see is black, and has no depth.
    """

    def __init__(self, camera: Calibration) -> None:
        self.bent = bool(camera.params[4:].any()) or camera.camera_model == "fisheye"
        self.camera = Calibration("pinhole", np.array([*camera.params[:4], 0, 0, 0, 0, 0]), camera.width, camera.height)
        self._places = _seen_at(self.camera, camera) if self.bent else None

    def rgb(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3), interpolated linearly."""
        return self._remapped(picture, "INTER_LINEAR", 0)

    def depth(self, z_depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W) depth along the optical axis, of the nearest pixel; NaN where it is unknown."""
        return self._remapped(z_depth, "INTER_NEAREST", np.nan)

    def labels(self, numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) numbers of the nearest pixel; 0 where the lens does not see."""
        return self._remapped(numbers, "INTER_NEAREST", 0)

    def _remapped(self, array: NDArray[Any], how: str, outside: float) -> NDArray[Any]:
        if self._places is None:
            return array
        import cv2

        return np.asarray(cv2.remap(array, self._places, None, getattr(cv2, how), borderValue=outside), array.dtype)


def _seen_at(pinhole: Calibration, camera: Calibration) -> NDArray[np.float32]:
    """Pixels (H, W, 2) of the camera that show what the pixels of the pinhole do; far outside where the lens does not reach."""
    import torch

    from vipe_dag.export.cloud import rays
    from vipe_kernels.cameras import in_view, project

    directions = torch.from_numpy(rays(pinhole)[0])
    params = torch.from_numpy(camera.params.copy())
    uv = project(directions, params, camera.camera_model).numpy()
    return np.where(in_view(directions, params, camera.camera_model).numpy()[..., None], uv, -1e6).astype(np.float32)
