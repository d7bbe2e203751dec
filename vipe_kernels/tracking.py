"""Point correspondences between two images: corners on a grid, followed by dense flow and refined by Lucas-Kanade; SIFT for wide baselines.

Everything runs on the CPU and is deterministic. Pixel centres at integers. Lengths are in pixels of the image handed in; thresholds
scale with `pixel_unit(width, height)` so that they survive a change of resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vipe_kernels import following, sift
from vipe_kernels.compiled import compiled
from vipe_kernels.following import Pyramid
from vipe_kernels.sift import Keypoints

Gray = NDArray[np.uint8]
Points = NDArray[np.float32]

_FEATURE_PIXELS = 320 * 240
_CONTRAST = 0.02
"""Of SIFT keypoints: half of what Lowe recommends, so that dim pictures have some; the strongest are taken first."""
_NOISE = 4.0
"""Standard deviation of normalised grey levels that is not signal: sensor noise and compression."""


def spread(index: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of an ascending list of points, evenly over it and thus over the picture."""
    return index if len(index) <= most else index[np.linspace(0, len(index) - 1, most).round().astype(int)]


def pixel_unit(width: int, height: int) -> float:
    """Length of one pixel of a 640-pixel-wide picture, in pixels of a picture of this size (long side counts)."""
    return max(width, height) / 640.0


def normalise(gray: Gray) -> Gray:
    """Local contrast normalisation, (H, W) uint8 -> (H, W) uint8: exposure changes and vignetting must not look like motion."""
    size = (round(12 * pixel_unit(gray.shape[1], gray.shape[0])) * 2 + 1,) * 2
    out = np.empty_like(gray)
    _standardise(gray, cv2.boxFilter(gray, cv2.CV_32F, size), cv2.sqrBoxFilter(gray, cv2.CV_32F, size), out)
    return out


@compiled
def _standardise(gray: Gray, mean: NDArray[np.float32], square: NDArray[np.float32], out: Gray) -> None:
    """(gray - mean) / spread as grey levels around 128, from the means of gray and of its square around each pixel."""
    for y in range(gray.shape[0]):
        for x in range(gray.shape[1]):
            spread = np.sqrt(max(square[y, x] - mean[y, x] * mean[y, x], np.float32(0.0))) + np.float32(8.0)
            level = np.float32(128.0) + np.float32(40.0) * (np.float32(gray[y, x]) - mean[y, x]) / spread
            out[y, x] = np.uint8(min(max(level, np.float32(0.0)), np.float32(255.0)))


def prepared(gray: Gray) -> Pyramid:
    """One image made ready for point tracking: locally normalised, with patches 15 pixels wide in a 640-pixel picture."""
    return Pyramid(normalise(gray), round(7 * pixel_unit(gray.shape[1], gray.shape[0])))


def grid_corners(image: Gray, columns: int) -> tuple[Points, NDArray[np.float32]]:
    """The strongest corner of every cell of a regular grid.

    image (H, W) uint8; columns: cells along the long side. Returns uv (gy, gx, 2) float32 and sigma (gy, gx) float32: the standard
    deviation in pixels with which a 15-pixel window at that corner can be located (Shi and Tomasi 1994: inverse of the smaller eigenvalue).
    """
    height, width = image.shape
    cell = max(8, int(np.ceil(max(width, height) / columns)))
    gy, gx = max(1, height // cell), max(1, width // cell)
    off_y, off_x = (height - gy * cell) // 2, (width - gx * cell) // 2
    block = 7
    eigen = cv2.cornerMinEigenVal(image.astype(np.float32), block, ksize=3) / 4.0
    margin = min(8, cell // 2)
    eigen[:margin], eigen[-margin:], eigen[:, :margin], eigen[:, -margin:] = 0, 0, 0, 0
    cells = (
        eigen[off_y : off_y + gy * cell, off_x : off_x + gx * cell].reshape(gy, cell, gx, cell).transpose(0, 2, 1, 3).reshape(gy, gx, -1)
    )
    best = cells.argmax(-1)
    strength = np.take_along_axis(cells, best[..., None], -1)[..., 0]
    centre = (cell // 2) * cell + cell // 2
    best = np.where(strength > 0, best, centre)
    uv = np.stack([best % cell + off_x + cell * np.arange(gx)[None, :], best // cell + off_y + cell * np.arange(gy)[:, None]], -1).astype(
        np.float32
    )
    sigma = _NOISE * np.sqrt(2.0) / np.sqrt(15.0 * 15.0 * np.maximum(strength, 1e-4))
    return uv, sigma.astype(np.float32)


def dense_seed(source: Gray, target: Gray, preset: int = cv2.DISOPTICAL_FLOW_PRESET_FAST) -> NDArray[np.float32]:
    """Dense inverse search flow (Kroeger et al. 2016), (H, W, 2) float32, source to target."""
    dis = cv2.DISOpticalFlow_create(preset)
    return np.asarray(dis.calc(source, target, None), np.float32)


def sample(field: NDArray[np.float32], uv: Points) -> NDArray[np.float32]:
    """Bilinear samples of field (H, W, C) at uv (N, 2), border replicated: (N, C) float32."""
    if len(uv) == 0:
        return np.zeros((0, field.shape[2]), np.float32)
    # cv2.remap takes pictures below 32,768 a side, so a long list becomes a picture 1,024 wide.
    width = 1024
    padded = np.zeros((-(-len(uv) // width) * width, 2), np.float32)
    padded[: len(uv)] = uv
    x, y = padded[:, 0].reshape(-1, width), padded[:, 1].reshape(-1, width)
    out = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out, np.float32).reshape(len(padded), -1)[: len(uv)]


def follow(source: Pyramid, target: Pyramid, uv: Points, guess: Points, level: int = 1) -> tuple[Points, NDArray[np.float32]]:
    """Lucas-Kanade from a guess, forward and backward.

    uv, guess (N, 2) float32. Returns the positions in the target (N, 2) and the forward-backward error (N,) in pixels,
    inf where lost or outside.
    """
    there, back, found = following.follow(source, target, uv, guess, level)
    error = np.linalg.norm(back - uv, axis=1)
    height, width = target.image.shape
    inside = (there[:, 0] >= 2) & (there[:, 1] >= 2) & (there[:, 0] <= width - 3) & (there[:, 1] <= height - 3)
    return there, np.where(found & inside, error, np.inf).astype(np.float32)


@dataclass(frozen=True)
class Features:
    """SIFT keypoints of one image: uv (N, 2) float32; code (N, 128) uint8: RootSIFT in steps of 1 / 512, which is less than its noise."""

    uv: Points
    code: NDArray[np.uint8]

    @property
    def descriptor(self) -> NDArray[np.float32]:
        """(N, 128) float32 of unit length."""
        values = self.code.astype(np.float32)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)

    def every(self, step: int) -> Features:
        """The first feature and each `step`-th after it."""
        return Features(self.uv[::step], self.code[::step])


def detect(gray: Gray, count: int) -> Features:
    """At most `count` RootSIFT features (Lowe 2004; Arandjelovic and Zisserman 2012), strongest first, spread by a coarse grid.

    They are looked for in a picture of at most _FEATURE_PIXELS: of as many features the larger ones are found again more often (a fifth
    more matches than at 640 x 480, measured), at a quarter of the cost.
    """
    if count == 0:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    factor = min(1.0, float(np.sqrt(_FEATURE_PIXELS / gray.size)))
    image = gray if factor == 1.0 else np.asarray(cv2.resize(gray, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)
    pyramid = list(sift.octaves(image))
    found = sift.detect(pyramid, _CONTRAST)
    chosen = found.select(_spread(found, max(image.shape) / 8)[:count])
    owner, descriptor = sift.describe(pyramid, chosen, count)
    root = np.sqrt(descriptor / np.maximum(descriptor.sum(1, keepdims=True), 1e-9))
    scale = np.array([gray.shape[1] / image.shape[1], gray.shape[0] / image.shape[0]])
    uv = (chosen.uv[owner] + 0.5) * scale - 0.5
    return Features(uv.astype(np.float32), np.minimum(np.rint(512 * root), 255).astype(np.uint8))


def _spread(found: Keypoints, cell: float) -> NDArray[np.intp]:
    """The order of keypoints in which the strongest of each cell, `cell` pixels wide, come first, then the second of each, and so on."""
    cells = (found.uv // cell).astype(np.int64) @ [1, 64]
    ties = (found.scale, found.uv[:, 1], found.uv[:, 0], -found.response)
    by_cell = np.lexsort((*ties, cells))
    rank = np.empty(len(cells), np.int64)
    rank[by_cell] = np.arange(len(cells)) - np.searchsorted(cells[by_cell], cells[by_cell])
    return np.lexsort((*ties, rank))


def match(a: Features, b: Features, ratio: float = 0.8) -> NDArray[np.int64]:
    """Mutual nearest neighbours that pass the ratio test: (M, 2) indices into a and b."""
    if len(a.uv) < 2 or len(b.uv) < 2:
        return np.zeros((0, 2), np.int64)
    similarity = (torch.from_numpy(a.descriptor) @ torch.from_numpy(b.descriptor).T).numpy()
    rows, forward = np.arange(len(a.uv)), similarity.argmax(1)
    best, closest = similarity[rows, forward], similarity.max(0)  # of which row it is would take twenty times as long to tell
    similarity[rows, forward] = -1.0
    second = similarity.max(1)
    # |x - y|^2 = 2 - 2 x.y for unit vectors, so the ratio of distances follows from the similarities.
    passed = np.flatnonzero(((1.0 - best) < ratio * ratio * (1.0 - second)) & (best == closest[forward]))
    kept = passed[np.sort(np.unique(forward[passed], return_index=True)[1])]  # of equals, the first
    return np.stack([kept, forward[kept]], 1)
