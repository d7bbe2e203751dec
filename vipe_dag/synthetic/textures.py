"""Textures of the synthetic worlds: photographs that ship inside scikit-image (public domain or CC0), and procedural ones."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg", "camera.png", "moon.png")
MATERIALS = ("brick.png", "grass.png", "gravel.png")


@lru_cache(maxsize=len(PHOTOS) + len(MATERIALS))
def photo(name: str) -> Image:
    """(H, W, 3) uint8 RGB picture of scikit-image's wheel. Raises FileNotFoundError where the package does not ship it."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    data = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if data is None:
        raise FileNotFoundError(f"{path}: scikit-image does not ship this picture")
    picture = np.ascontiguousarray(data[..., ::-1], np.uint8)
    picture.setflags(write=False)
    return picture


def noise(
    rng: np.random.Generator, height: int, width: int, octaves: tuple[int, ...] = (2, 4, 8, 16, 32, 64), falloff: float = 0.75
) -> NDArray[np.float32]:
    """(height, width) float32 of zero mean and unit deviation: sums of smoothed grids whose cells are `octaves` pixels wide."""
    total = np.zeros((height, width), np.float32)
    for level, cell in enumerate(sorted(octaves, reverse=True)):
        grid = rng.standard_normal((height // cell + 3, width // cell + 3)).astype(np.float32)
        large = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        total += falloff**level * large[cell : cell + height, cell : cell + width]
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def _colour(base: tuple[int, int, int], shade: NDArray[np.float32], amount: float) -> Image:
    return np.clip(np.array(base, np.float32) * (1.0 + amount * shade[..., None]), 0, 255).astype(np.uint8)


def plaster(rng: np.random.Generator, height: int, width: int, base: tuple[int, int, int], amount: float = 0.10) -> Image:
    """Rough paint: noise at every scale, stains, and small chips."""
    image = _colour(base, noise(rng, height, width), amount)
    for _ in range(height * width // 2500):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        tone = np.array(base) * rng.uniform(0.45, 1.25)
        axes = (int(rng.integers(1, 6)), int(rng.integers(1, 4)))
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, np.clip(tone, 0, 255).tolist(), -1, cv2.LINE_AA)
    return image


def tiled(name: str, rng: np.random.Generator, height: int, width: int, tint: tuple[int, int, int], size: int = 256) -> Image:
    """A material photograph repeated every `size` pixels, with stains that make every place unique."""
    tile = cv2.resize(photo(name), (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 128.0
    picture = np.tile(tile, (height // size + 1, width // size + 1, 1))[:height, :width]
    stains = 1.0 + 0.16 * noise(rng, height, width, (4, 16, 48, 128), 0.7)[..., None]
    return np.clip(picture * stains * np.array(tint, np.float32), 0, 255).astype(np.uint8)


def wood(rng: np.random.Generator, height: int, width: int, base: tuple[int, int, int], plank: int = 48) -> Image:
    """Planks along x: grain stretched along each plank, own tone per plank, dark joints and knots."""
    image = np.zeros((height, width, 3), np.uint8)
    grain = noise(rng, height * 2, max(width // 8, 4), (2, 4, 8, 32), 0.8)
    grain = np.asarray(cv2.resize(grain, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    fine = noise(rng, height, width, (2, 3, 6), 0.9)
    for top in range(0, height, plank):
        left = -int(rng.integers(0, 200))
        while left < width:
            right = left + int(rng.integers(160, 420))
            rows, columns = slice(top, top + plank), slice(max(left, 0), max(right, 0))
            tone = rng.uniform(0.7, 1.2)
            image[rows, columns] = _colour(base, 0.18 * grain[rows, columns] + 0.10 * fine[rows, columns] + np.float32(tone - 1), 1.0)
            image[rows, max(right - 2, 0) : max(right, 0)] //= 3
            left = right
        image[top : top + 2] //= 3
    for _ in range(height * width // 20000):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.ellipse(
            image, centre, (int(rng.integers(3, 10)), int(rng.integers(2, 6))), 0, 0, 360, [int(0.4 * c) for c in base], -1, cv2.LINE_AA
        )
    return image


def cloth(rng: np.random.Generator, height: int, width: int, colours: tuple[tuple[int, int, int], ...]) -> Image:
    """A rug or a cover: irregular coloured patches with weave and outlines."""
    field = noise(rng, height, width, (24, 48, 96), 0.8)
    levels = np.clip(((field + 1.6) / 3.2 * len(colours)).astype(int), 0, len(colours) - 1)
    weave = noise(rng, height, width, (2, 4), 0.8)
    palette = np.array(colours, np.float32)
    edges = cv2.Laplacian(levels.astype(np.float32), cv2.CV_32F) != 0
    image = palette[levels] * (1.0 + 0.16 * weave[..., None])
    image[edges] *= 0.5
    return np.clip(image, 0, 255).astype(np.uint8)


def books(rng: np.random.Generator, height: int, width: int, shelves: int = 4) -> Image:
    """A filled bookcase seen from the front."""
    image = plaster(rng, height, width, (62, 44, 32))
    step = height // shelves
    for row in range(shelves):
        x, floor = 6, (row + 1) * step - 8
        while x < width - 14:
            thickness = int(rng.integers(7, 22))
            top = floor - int(rng.uniform(0.55, 0.88) * step)
            colour = muted(rng, 40, 220)
            patch = image[top:floor, x : min(x + thickness, width - 6)]
            patch[:] = _colour(colour, noise(rng, patch.shape[0], patch.shape[1], (2, 5)), 0.10)
            cv2.rectangle(image, (x, top), (x + thickness - 1, floor), [c // 3 for c in colour], 1)
            for _ in range(int(rng.integers(1, 5))):
                y = int(rng.integers(top + 3, floor - 6))
                cv2.rectangle(image, (x + 2, y), (x + thickness - 3, y + int(rng.integers(1, 6))), muted(rng, 10, 250), -1)
            x += thickness + int(rng.random() < 0.15) * int(rng.integers(2, 9))
        image[floor : floor + 8] = _colour((120, 86, 58), noise(rng, 8, width, (2, 4)), 0.12)[: image[floor : floor + 8].shape[0]]
    return image


def hang(image: Image, rng: np.random.Generator, name: str, x: int, y: int, width: int) -> None:
    """Hang a framed photograph on a wall texture, in place, its upper left corner at (x, y)."""
    source = photo(name)
    height = int(width * source.shape[0] / source.shape[1])
    picture = cv2.resize(source, (width, height), interpolation=cv2.INTER_AREA)
    border = max(3, width // 28)
    y0, x0 = max(y - border, 0), max(x - border, 0)
    frame = image[y0 : y + height + border, x0 : x + width + border]
    frame[:] = _colour(muted(rng, 30, 120), noise(rng, frame.shape[0], frame.shape[1], (2, 4, 8)), 0.15)
    target = image[y : y + height, x : x + width]
    target[:] = picture[: target.shape[0], : target.shape[1]]


def muted(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    """A colour of a random brightness in [low, high) and little saturation, as paint and paper have."""
    tone = rng.uniform(low, high) * (1.0 + 0.28 * rng.uniform(-1, 1, 3))
    red, green, blue = np.clip(tone, 0, 255).astype(int).tolist()
    return red, green, blue


def facade(rng: np.random.Generator, height: int, width: int, pitch: int) -> Image:
    """A house front: brick or plaster, rows of windows with reflections, a door, a sign; `pitch` pixels between windows."""
    if rng.random() < 0.5:
        image = tiled("brick.png", rng, height, width, muted(rng, 100, 170), size=int(rng.integers(110, 200)))
    else:
        image = plaster(rng, height, width, muted(rng, 120, 210), 0.14)
    for top in range(pitch // 3, height - pitch, pitch):
        for left in range(pitch // 4, width - pitch // 2, int(pitch * 0.9)):
            w, h = int(pitch * 0.45), int(pitch * 0.6)
            hang(image, rng, PHOTOS[int(rng.integers(len(PHOTOS)))], left + int(rng.integers(-4, 5)), top + int(rng.integers(-4, 5)), w)
            pane = image[top : top + h, left : left + w]
            pane[:] = (pane * rng.uniform(0.35, 0.9)).astype(np.uint8)
            cv2.rectangle(image, (left - 3, top + h), (left + w + 3, top + h + 4), rng.integers(60, 230, 3).tolist(), -1)
    for left in range(pitch // 2, width - pitch, int(pitch * 1.6)):
        hang(image, rng, PHOTOS[int(rng.integers(len(PHOTOS)))], left, height - int(pitch * 0.8), int(pitch * 0.8))
        letters = "".join(chr(int(c)) for c in rng.integers(65, 91, 7))
        cv2.putText(
            image,
            letters,
            (left, height - int(pitch * 0.86)),
            cv2.FONT_HERSHEY_DUPLEX,
            pitch / 110,
            rng.integers(0, 90, 3).tolist(),
            2,
            cv2.LINE_AA,
        )
    return image


def clouds(rng: np.random.Generator, height: int, width: int) -> Image:
    """An overcast sky with structure at every scale, so that no pixel is featureless."""
    field = noise(rng, height, width, (4, 8, 16, 32, 64, 128), 0.65)[..., None]
    blue, white = np.array((120, 150, 190), np.float32), np.array((235, 235, 232), np.float32)
    mix = np.clip(0.5 + 0.33 * field, 0, 1)
    return (blue * (1 - mix) + white * mix).astype(np.uint8)


def lit(image: Image, top: float, bottom: float) -> Image:
    """The texture under a light that falls off linearly from its upper to its lower edge; it belongs to the surface, never to the view."""
    gain = np.linspace(top, bottom, image.shape[0], dtype=np.float32)[:, None, None]
    return np.clip(image * gain, 0, 255).astype(np.uint8)
