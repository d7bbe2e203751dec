"""Worlds made of textured rectangles and balls, packed into one texture atlas.

World axes: x right, y down, z forward; metres. Every surface belongs to body 0 (the world itself) or to a moving body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from vipe_dag.synthetic import textures
from vipe_dag.synthetic.trajectory import Path

Array = NDArray[np.float64]
LEVELS = 5
_GUTTER = 2 ** (LEVELS - 1)
_ATLAS_WIDTH = 4096


@dataclass(frozen=True)
class Rectangle:
    """Points corner + u * edge_u + v * edge_v with u, v in [0, 1], visible from the side that edge_u x edge_v points away from.

    patch: x, y, width, height of its texture in the atlas, pixels.
    """

    corner: Array
    edge_u: Array
    edge_v: Array
    patch: tuple[int, int, int, int]
    body: int


@dataclass(frozen=True)
class Ball:
    """A sphere whose texture is wrapped by longitude and latitude."""

    centre: Array
    radius: float
    patch: tuple[int, int, int, int]
    body: int


@dataclass(frozen=True)
class World:
    """Surfaces, the motion of each moving body (body k follows motions[k - 1]), and a mip-mapped atlas (H, W, 3) uint8.

    Level l of the atlas is the full one reduced by 2^l and starts at level_origin[l] = (x, y).
    """

    surfaces: tuple[Rectangle | Ball, ...]
    motions: tuple[Path, ...]
    atlas: NDArray[np.uint8]
    level_origin: NDArray[np.float32]

    def body_pose(self, body: int, time: float) -> Array:
        """(4, 4) body-to-world at `time` seconds; the identity for body 0."""
        return np.eye(4) if body == 0 else self.motions[body - 1](np.array([time]))[0]


@dataclass
class Builder:
    """Collects surfaces and textures, then packs them. contrast: of every texture, about its mean colour; 0 leaves plain surfaces."""

    rng: np.random.Generator
    contrast: float = 1.0
    _pictures: list[textures.Image] = field(default_factory=list)
    _rectangles: list[tuple[Array, Array, Array, int, int]] = field(default_factory=list)
    _balls: list[tuple[Array, float, int, int]] = field(default_factory=list)
    _motions: list[Path] = field(default_factory=list)

    def picture(self, image: textures.Image) -> int:
        """Register a texture; the returned number is used by any number of surfaces."""
        if self.contrast != 1.0:
            mean = image.mean(axis=(0, 1), dtype=np.float32)
            image = np.clip(np.rint(mean + np.float32(self.contrast) * (image - mean)), 0, 255).astype(np.uint8)
        self._pictures.append(image)
        return len(self._pictures) - 1

    def mover(self, motion: Path) -> int:
        """Register a moving body; surfaces added with its number live in its own frame."""
        self._motions.append(motion)
        return len(self._motions)

    def rectangle(self, corner: ArrayLike, edge_u: ArrayLike, edge_v: ArrayLike, picture: int, body: int = 0) -> None:
        self._rectangles.append((np.asarray(corner, float), np.asarray(edge_u, float), np.asarray(edge_v, float), picture, body))

    def ball(self, centre: ArrayLike, radius: float, picture: int, body: int = 0) -> None:
        self._balls.append((np.asarray(centre, float), radius, picture, body))

    def box(self, centre: ArrayLike, size: ArrayLike, pictures: Sequence[int], yaw: float = 0.0, body: int = 0) -> None:
        """A box seen from outside, turned by `yaw` about y. pictures: front (-z), right, back, left, top, bottom, repeated as needed.

        A negative width (x) turns the box inside out: it is then seen from within.
        """
        turn = Rotation.from_rotvec([0.0, yaw, 0.0]).as_matrix()
        x, y, z = np.asarray(size, float) / 2
        faces = [
            ((-x, -y, -z), (2 * x, 0, 0), (0, 2 * y, 0)),
            ((x, -y, -z), (0, 0, 2 * z), (0, 2 * y, 0)),
            ((x, -y, z), (-2 * x, 0, 0), (0, 2 * y, 0)),
            ((-x, -y, z), (0, 0, -2 * z), (0, 2 * y, 0)),
            ((-x, -y, z), (2 * x, 0, 0), (0, 0, -2 * z)),
            ((-x, y, -z), (2 * x, 0, 0), (0, 0, 2 * z)),
        ]
        for i, (corner, u, v) in enumerate(faces):
            self.rectangle(np.asarray(centre, float) + turn @ corner, turn @ u, turn @ v, pictures[i % len(pictures)], body)

    def build(self) -> World:
        """Pack all textures on shelves, add gutters against bleeding between neighbours, and reduce the levels."""
        order = sorted(range(len(self._pictures)), key=lambda i: -self._pictures[i].shape[0])
        place: dict[int, tuple[int, int, int, int]] = {}
        x = y = shelf = 0
        for i in order:
            height, width = self._pictures[i].shape[:2]
            outer_h, outer_w = (-(-(n + 2 * _GUTTER) // _GUTTER) * _GUTTER for n in (height, width))
            if x + outer_w > _ATLAS_WIDTH:
                x, y, shelf = 0, y + shelf, 0
            place[i] = (x + _GUTTER, y + _GUTTER, width, height)
            x, shelf = x + outer_w, max(shelf, outer_h)
        height = y + shelf
        atlas = np.zeros((height, _ATLAS_WIDTH * 3 // 2, 3), np.uint8)
        for i, (px, py, w, h) in place.items():
            right, bottom = -(w + _GUTTER) % _GUTTER + _GUTTER, -(h + _GUTTER) % _GUTTER + _GUTTER
            padded = cv2.copyMakeBorder(self._pictures[i], _GUTTER, bottom, _GUTTER, right, cv2.BORDER_REPLICATE)
            atlas[py - _GUTTER : py + h + bottom, px - _GUTTER : px + w + right] = padded
        origin = np.zeros((LEVELS, 2), np.float32)
        level, top = atlas[:, :_ATLAS_WIDTH], 0
        for i in range(1, LEVELS):
            half = (level.shape[1] // 2, level.shape[0] // 2)
            level = np.asarray(cv2.resize(level, half, interpolation=cv2.INTER_AREA), np.uint8)
            atlas[top : top + level.shape[0], _ATLAS_WIDTH : _ATLAS_WIDTH + level.shape[1]] = level
            origin[i] = _ATLAS_WIDTH, top
            top += level.shape[0]
        surfaces: list[Rectangle | Ball] = [Rectangle(c, u, v, place[p], b) for c, u, v, p, b in self._rectangles]
        surfaces += [Ball(c, r, place[p], b) for c, r, p, b in self._balls]
        return World(tuple(surfaces), tuple(self._motions), atlas, origin)
