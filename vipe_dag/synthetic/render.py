"""Ray casting of a `World`: per-pixel rays once per camera, exact z-depth, mip-mapped texture and 2 x 2 samples per pixel.

A rectangle P(u, v) = p + u a + v b seen along the camera ray t (x, y, 1) gives (u, v, 1) / t = [a b p]^-1 (x, y, 1): three linear forms
per ray, exact for any lens, because the lens only decides which (x, y) a pixel has.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.synthetic.lens import undistort
from vipe_dag.synthetic.world import LEVELS, Ball, Rectangle, World

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
_TILE = 32
_NEAREST = 0.02


@dataclass(frozen=True)
class Rays:
    """Normalised directions (x, y, 1) of a grid of samples, and bounds (4, rows, columns) = x0 x1 y0 y1 of each 32 x 32 tile of it."""

    x: F32
    y: F32
    bounds: Array
    log_length: F32
    samples_per_pixel: float

    @staticmethod
    def of(camera: Calibration, supersample: int = 1) -> Rays:
        """The rays of all pixel centres, or of `supersample` x `supersample` points in each pixel."""
        u = (np.arange(camera.width * supersample) + 0.5) / supersample - 0.5
        v = (np.arange(camera.height * supersample) + 0.5) / supersample - 0.5
        return Rays.through(*undistort(camera, *np.meshgrid(u, v)), supersample)

    @staticmethod
    def through(x: Array, y: Array, samples_per_pixel: float = 1.0) -> Rays:
        """Any grid of normalised directions (x, y, 1), arrays (rows, columns)."""
        rows, columns = (np.arange(0, n, _TILE) for n in x.shape)

        def tiles(reduce: np.ufunc, values: Array) -> Array:
            return reduce.reduceat(reduce.reduceat(values, rows, axis=0), columns, axis=1)

        bounds = np.stack([tiles(np.minimum, x), tiles(np.maximum, x), tiles(np.minimum, y), tiles(np.maximum, y)])
        length = 0.25 * np.log2(1 + x * x + y * y)
        return Rays(x.astype(np.float32), y.astype(np.float32), bounds, length.astype(np.float32), float(samples_per_pixel))


@dataclass(frozen=True)
class Hits:
    """What each ray meets first: inverse z-depth (0 = nothing), body number, atlas position in texels, and detail = lod before distance."""

    inverse_depth: F32
    body: NDArray[np.uint8]
    atlas_x: F32
    atlas_y: F32
    detail: F32


def _upper(forms: Array, bounds: Array) -> Array:
    """Largest value (..., rows, columns) of linear forms f . (x, y, 1), given as (..., 3), in each tile."""
    x0, x1, y0, y1 = bounds
    a, b, c = np.moveaxis(forms[..., None, None], -3, 0)
    return np.maximum(a * x0, a * x1) + np.maximum(b * y0, b * y1) + c


def _window(alive: NDArray[np.bool_], shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Smallest pixel rectangle that covers the tiles in `alive`."""
    rows, columns = np.flatnonzero(alive.any(axis=1)), np.flatnonzero(alive.any(axis=0))
    if len(rows) == 0:
        return None
    return (
        slice(int(rows[0]) * _TILE, min(int(rows[-1] + 1) * _TILE, shape[0])),
        slice(int(columns[0]) * _TILE, min(int(columns[-1] + 1) * _TILE, shape[1])),
    )


def cast(world: World, cam2world: Array, rays: Rays, focal: float, time: float = 0.0) -> Hits:
    """First hits of all rays from cam2world (4, 4) at `time` seconds. `focal`, pixels, only sets the level of detail of textures."""
    shape = rays.x.shape
    hits = Hits(
        np.zeros(shape, np.float32),
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.float32),
        np.zeros(shape, np.float32),
        np.zeros(shape, np.float32),
    )
    world2cam = np.linalg.inv(cam2world)
    poses = [world2cam @ world.body_pose(body, time) for body in range(len(world.motions) + 1)]
    _cast_rectangles(hits, [s for s in world.surfaces if isinstance(s, Rectangle)], poses, rays, focal)
    for surface in world.surfaces:
        if isinstance(surface, Ball):
            _cast_ball(hits, surface, poses[surface.body], rays, focal)
    return hits


def _cast_rectangles(hits: Hits, surfaces: list[Rectangle], poses: list[Array], rays: Rays, focal: float) -> None:
    """Set up all rectangles at once, drop those that face away and tiles they cannot reach, then intersect what remains."""
    local = np.stack([np.stack([s.edge_u, s.edge_v, s.corner], axis=1) for s in surfaces])
    pose = np.stack([poses[s.body] for s in surfaces])
    frames = pose[:, :3, :3] @ local
    frames[:, :, 2] += pose[:, :3, 3]
    distance = np.linalg.det(frames) / np.linalg.norm(np.cross(local[:, :, 0], local[:, :, 1]), axis=1)
    facing = np.flatnonzero(distance > 1e-4)
    forms: Array = np.asarray(np.linalg.inv(frames[facing]), np.float64)
    u, v, w = forms[:, 0], forms[:, 1], forms[:, 2]
    reach = np.minimum.reduce([_upper(form, rays.bounds) for form in (w, u, w - u, v, w - v)]) > 0
    for number, form, alive in zip(facing, forms.astype(np.float32), reach, strict=True):
        window = _window(alive, rays.x.shape)
        if window is not None:
            _cast_rectangle(hits, surfaces[number], form, float(distance[number]), window, rays, focal)


def _cast_rectangle(
    hits: Hits, surface: Rectangle, forms: F32, distance: float, window: tuple[slice, slice], rays: Rays, focal: float
) -> None:
    u, v, w = forms
    x, y = rays.x[window], rays.y[window]
    inverse = w[0] * x
    inverse += w[1] * y
    inverse += w[2]
    nearer = (inverse > hits.inverse_depth[window]) & (inverse < 1.0 / _NEAREST)
    if not nearer.any():
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        s = (u[0] * x + u[1] * y + u[2]) / inverse
        nearer &= (s >= 0) & (s <= 1)
        t = (v[0] * x + v[1] * y + v[2]) / inverse
        nearer &= (t >= 0) & (t <= 1)
    left, top, width, height = surface.patch
    density = 0.5 * (width / np.linalg.norm(surface.edge_u) + height / np.linalg.norm(surface.edge_v))
    _store(hits, window, nearer, inverse, left - 0.5 + s * width, top - 0.5 + t * height, surface.body)
    hits.detail[window][nearer] = np.log2(density / focal) - 0.5 * np.log2(distance)


def _cast_ball(hits: Hits, surface: Ball, pose: Array, rays: Rays, focal: float) -> None:
    centre = pose[:3, :3] @ surface.centre + pose[:3, 3]
    far = float(np.linalg.norm(centre))
    if far <= surface.radius * 1.01:
        return
    x0, x1, y0, y1 = rays.bounds
    middle = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, np.ones_like(x0)], axis=-1)
    middle /= np.linalg.norm(middle, axis=-1, keepdims=True)
    spread = np.arctan(np.hypot(x1 - x0, y1 - y0) / 2)
    angle = np.arccos(np.clip(middle @ centre / far, -1, 1))
    window = _window(angle < spread + np.arcsin(surface.radius / far), rays.x.shape)
    if window is None:
        return
    x, y = rays.x[window].astype(np.float64), rays.y[window].astype(np.float64)
    square = x * x + y * y + 1
    along = x * centre[0] + y * centre[1] + centre[2]
    root = along * along - square * (far * far - surface.radius**2)
    depth = (along - np.sqrt(np.maximum(root, 0))) / square
    inverse = (1.0 / np.where(depth > _NEAREST, depth, np.inf)).astype(np.float32)
    nearer = (root > 0) & (inverse > hits.inverse_depth[window])
    out = (np.stack([x * depth, y * depth, depth], axis=-1) - centre) @ pose[:3, :3] / surface.radius
    longitude = np.arctan2(out[..., 0], out[..., 2]) / (2 * np.pi) + 0.5
    latitude = np.arcsin(np.clip(out[..., 1], -1, 1)) / np.pi + 0.5
    left, top, width, height = surface.patch
    at_x, at_y = (left - 0.5 + longitude * width).astype(np.float32), (top - 0.5 + latitude * height).astype(np.float32)
    _store(hits, window, nearer, inverse, at_x, at_y, surface.body)
    density = height / (np.pi * surface.radius)
    hits.detail[window][nearer] = np.log2(density / focal) - 0.5 * np.log2(far)


def _store(hits: Hits, window: tuple[slice, slice], nearer: NDArray[np.bool_], inverse: F32, atlas_x: F32, atlas_y: F32, body: int) -> None:
    np.copyto(hits.inverse_depth[window], inverse, where=nearer)
    np.copyto(hits.atlas_x[window], atlas_x, where=nearer)
    np.copyto(hits.atlas_y[window], atlas_y, where=nearer)
    hits.body[window][nearer] = body


def shade(world: World, hits: Hits, rays: Rays) -> NDArray[np.uint8]:
    """Colours (rows, columns, 3) uint8 of the hits: bilinear in two neighbouring levels of the atlas, blended by the level of detail.

    The footprint is the geometric mean of its two axes: lod = log2(density / focal) + log2(depth) + log2(1 / cos) / 2.
    """
    inverse = np.maximum(hits.inverse_depth, 1e-6)
    lod = np.clip(hits.detail - 1.5 * np.log2(inverse) + rays.log_length, 0, LEVELS - 1.001)
    level = lod.astype(np.int32)
    fraction = lod - level.astype(np.float32)
    fine = _sample(world, hits, level)
    if not (fraction > 0).any():
        return fine
    blend = cv2.blendLinear(fine, _sample(world, hits, level + 1), 1 - fraction, fraction)
    return np.asarray(blend, np.uint8)


def _sample(world: World, hits: Hits, level: NDArray[np.int32]) -> NDArray[np.uint8]:
    scale = np.float32(2.0) ** -np.arange(LEVELS, dtype=np.float32)
    half = (0.5 * scale - 0.5).astype(np.float32)
    s = scale[level]
    x = hits.atlas_x * s + (half + world.level_origin[:, 0])[level]
    y = hits.atlas_y * s + (half + world.level_origin[:, 1])[level]
    return np.asarray(cv2.remap(world.atlas, x, y, cv2.INTER_LINEAR), np.uint8)


@dataclass(frozen=True)
class Picture:
    """One rendered frame: rgb (H, W, 3) uint8, z_depth (H, W) float32 metres (inf = nothing hit), body (H, W) uint8 (0 = static)."""

    rgb: NDArray[np.uint8]
    z_depth: F32
    body: NDArray[np.uint8]


def depth_and_body(world: World, cam2world: Array, rays: Rays, focal: float, time: float) -> tuple[F32, NDArray[np.uint8]]:
    """Exact z-depth (H, W) float32 metres and body numbers (H, W) uint8 along the given rays, without colours."""
    hits = cast(world, cam2world, rays, focal, time)
    with np.errstate(divide="ignore"):
        return np.float32(1.0) / hits.inverse_depth, hits.body


def colours(world: World, cam2world: Array, camera: Calibration, rays: Rays, time: float) -> NDArray[np.uint8]:
    """Antialiased (H, W, 3) uint8 picture from supersampled rays of `camera`."""
    focal = float(np.sqrt(camera.params[0] * camera.params[1])) * rays.samples_per_pixel
    fine = shade(world, cast(world, cam2world, rays, focal, time), rays)
    if rays.samples_per_pixel == 1:
        return fine
    return np.asarray(cv2.resize(fine, (camera.width, camera.height), interpolation=cv2.INTER_AREA), np.uint8)


def render(world: World, cam2world: Array, camera: Calibration, time: float = 0.0, supersample: int = 2) -> Picture:
    """Render one frame. cam2world (4, 4) float64, OpenCV axes, metres; `time` in seconds places moving bodies."""
    rgb = colours(world, cam2world, camera, Rays.of(camera, supersample), time)
    z_depth, body = depth_and_body(world, cam2world, Rays.of(camera), float(camera.params[0]), time)
    return Picture(rgb, z_depth, body)
