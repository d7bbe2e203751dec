"""The places: a furnished room, a street of houses, a hall that repeats itself. Same seed, same place, on every machine."""

from __future__ import annotations

from itertools import cycle

import cv2
import numpy as np

from vipe_dag.synthetic import textures
from vipe_dag.synthetic.trajectory import Path
from vipe_dag.synthetic.world import Builder, World

FLOOR, CEILING = 1.45, -1.15
"""Heights of the room, y down, for a camera held at y = 0."""
ROOM_HALF = (3.0, 4.0)
"""Half width (x) and half length (z) of the room, metres."""
_DENSITY = 256
"""Texels per metre indoors."""


def _texels(metres: float) -> int:
    return max(64, round(metres * _DENSITY))


def room(seed: int = 0, movers: tuple[tuple[Path, float], ...] = (), contrast: float = 1.0) -> World:
    """A living room of 6 x 8 x 2.6 m with a laid table in the middle and furniture along the walls.

    movers: (motion, height in metres) of figures that move on their own; a figure is 0.62 times as wide as high. contrast: of all textures.
    """
    b = Builder(np.random.default_rng(seed), contrast)
    _shell(b)
    _furniture(b)
    _table(b)
    for motion, height in movers:
        _figure(b, motion, height)
    return b.build()


def _shell(b: Builder) -> None:
    rng, (hx, hz), tall = b.rng, ROOM_HALF, FLOOR - CEILING
    paints = ((188, 150, 116), (142, 160, 148), (176, 168, 140), (156, 132, 150))
    sides = (
        ((-hx, CEILING, hz), (2 * hx, 0.0, 0.0)),
        ((hx, CEILING, hz), (0.0, 0.0, -2 * hz)),
        ((hx, CEILING, -hz), (-2 * hx, 0.0, 0.0)),
        ((-hx, CEILING, -hz), (0.0, 0.0, 2 * hz)),
    )
    for number, (corner, edge) in enumerate(sides):
        width, height = _texels(abs(sum(edge))), _texels(tall)
        if number == 2:
            wall = textures.tiled("brick.png", rng, height, width, (150, 118, 100), 300)
        else:
            wall = textures.plaster(rng, height, width, paints[number], 0.13)
        wall[-60:] = textures.wood(rng, 60, width, (120, 84, 56), 60)
        x = 70
        names = cycle(rng.permutation(textures.PHOTOS).tolist())
        while x < width - 260:
            name = next(names)
            w = int(rng.integers(110, 230))
            textures.hang(wall, rng, name, x, int(rng.integers(50, 190)), w)
            x += w + int(rng.integers(30, 110))
        b.rectangle(corner, edge, (0, tall, 0), b.picture(textures.lit(wall, 1.05, 0.8)))
    floor = textures.wood(rng, _texels(2 * hz), _texels(2 * hx), (142, 104, 70))
    rug = textures.cloth(rng, 860, 760, ((150, 50, 44), (206, 176, 120), (44, 60, 96), (96, 30, 40)))
    floor[600:1460, 390:1150] = rug
    b.rectangle((-hx, FLOOR, hz), (2 * hx, 0, 0), (0, 0, -2 * hz), b.picture(floor))
    ceiling = textures.plaster(rng, _texels(2 * hz) // 2, _texels(2 * hx) // 2, (214, 208, 196), 0.08)
    ceiling[::96] //= 2
    b.rectangle((-hx, CEILING, -hz), (2 * hx, 0, 0), (0, 0, 2 * hz), b.picture(ceiling))


def _standing(
    b: Builder, x: float, z: float, size: tuple[float, float, float], pictures: list[int], yaw: float = 0.0, above: float = 0.0
) -> None:
    b.box((x, FLOOR - above - size[1] / 2, z), size, pictures, yaw)


def _furniture(b: Builder) -> None:
    rng = b.rng
    oak = b.picture(textures.wood(rng, 400, 400, (150, 108, 66), 100))
    dark = b.picture(textures.wood(rng, 400, 400, (84, 58, 42), 80))
    shelf = b.picture(textures.books(rng, _texels(1.9), _texels(1.5), 5))
    low = b.picture(textures.books(rng, _texels(0.9), _texels(1.6), 2))
    cover = b.picture(textures.cloth(rng, 300, 520, ((70, 96, 110), (150, 160, 130), (40, 60, 66))))
    stripes = b.picture(textures.cloth(rng, 200, 200, ((190, 120, 50), (220, 200, 160), (120, 50, 40))))
    stone = b.picture(textures.tiled("gravel.png", rng, 300, 300, (150, 146, 140), 150))
    moss = b.picture(textures.tiled("grass.png", rng, 256, 512, (120, 150, 70), 128))
    prints = [b.picture(textures.photo(name)[::2, ::2].copy()) for name in ("astronaut.png", "coffee.png", "chelsea.png", "camera.png")]
    _standing(b, -1.7, 3.76, (1.5, 1.9, 0.44), [shelf, oak, oak, oak])
    _standing(b, 0.6, 3.74, (1.6, 0.9, 0.46), [low, dark, dark, dark])
    _standing(b, 0.3, 3.74, (0.36, 0.44, 0.3), [prints[1], stripes], 0.25, above=0.9)
    b.ball((1.05, FLOOR - 0.9 - 0.2, 3.7), 0.2, moss)
    _standing(b, 2.3, 3.5, (0.5, 1.3, 0.5), [stone, cover, stone, prints[3]], 0.4)
    _standing(b, -2.6, 0.9, (0.72, 0.46, 2.1), [cover])
    _standing(b, -2.84, 0.9, (0.26, 0.95, 2.1), [cover])
    _standing(b, -2.55, 1.5, (0.2, 0.42, 0.46), [stripes, prints[2]], 0.3, above=0.46)
    _standing(b, -2.6, -1.5, (0.6, 0.75, 0.9), [oak, prints[0], oak, dark], 0.1)
    b.ball((-2.6, FLOOR - 0.75 - 0.22, -1.5), 0.22, stone)
    _standing(b, 2.68, 1.3, (0.5, 1.0, 1.8), [dark, oak, dark, low])
    _standing(b, 2.65, 1.7, (0.34, 0.5, 0.5), [stripes, cover, stone, prints[0]], 0.2, above=1.0)
    _standing(b, 2.7, -1.4, (0.44, 1.8, 1.3), [oak, oak, oak, shelf])
    _standing(b, 1.5, -3.6, (1.7, 0.8, 0.6), [oak, dark, low, oak])
    _standing(b, -1.2, -3.6, (0.7, 1.5, 0.6), [stone, cover, prints[1], stripes], 0.15)


def _table(b: Builder) -> None:
    rng = b.rng
    top = b.picture(textures.wood(rng, 320, 480, (172, 130, 84), 64))
    leg = b.picture(textures.wood(rng, 256, 64, (110, 78, 52), 64))
    spines = b.picture(textures.books(rng, 128, 160, 1))
    rim = b.picture(textures.plaster(rng, 64, 128, (200, 190, 170), 0.2))
    globe = b.picture(textures.photo("retina.jpg")[200:1200:3, 200:1200:2].copy())
    cover = [b.picture(textures.photo(name)[::2, ::2].copy()) for name in ("hubble_deep_field.jpg", "rocket.jpg")]
    _standing(b, 0.1, 0.3, (1.7, 0.06, 1.1), [leg, leg, leg, leg, top, top], 0.12, above=0.72)
    for x, z in ((-0.6, -0.1), (0.8, -0.1), (-0.6, 0.7), (0.8, 0.7)):
        _standing(b, x, z, (0.08, 0.72, 0.08), [leg])
    _standing(b, -0.35, 0.2, (0.36, 0.3, 0.24), [spines, rim, spines, rim, cover[0]], 0.5, above=0.78)
    _standing(b, 0.45, 0.5, (0.3, 0.14, 0.4), [spines, spines, rim, rim, cover[1]], -0.3, above=0.78)
    _standing(b, 0.2, 0.0, (0.26, 0.05, 0.34), [rim, spines, rim, spines, cover[1]], 0.8, above=0.78)
    b.ball((0.05, FLOOR - 0.78 - 0.17, 0.45), 0.17, globe)
    b.ball((0.62, FLOOR - 0.78 - 0.09, 0.05), 0.09, cover[0])
    _standing(b, 1.25, 0.9, (0.42, 0.45, 0.42), [leg, rim, leg, rim, top], 0.5)
    _standing(b, -1.15, -0.2, (0.42, 0.45, 0.42), [rim, leg, rim, leg, cover[0]], -0.3)


def _figure(b: Builder, motion: Path, height: float) -> None:
    body = b.mover(motion)
    coat = b.picture(textures.cloth(b.rng, 400, 260, ((170, 40, 40), (230, 190, 60), (30, 60, 120), (40, 120, 80), (230, 230, 220))))
    back = b.picture(textures.photo("astronaut.png").copy())
    head = b.picture(textures.cloth(b.rng, 200, 400, ((224, 180, 150), (120, 70, 40), (200, 150, 120))))
    trunk = 0.74 * height
    b.box((0, 0.13 * height, 0), (0.62 * height, trunk, 0.4 * height), [back, coat, coat, coat], body=body)
    b.ball((0, 0.13 * height - trunk / 2 - 0.13 * height, 0), 0.15 * height, head, body)


def street(seed: int = 0, length: float = 100.0) -> World:
    """A street along +z, `length` metres, seen by a camera 1.5 m above the ground: houses, parked cars, posts, walls at both ends."""
    b = Builder(np.random.default_rng(seed + 1000))
    rng, ground, ends = b.rng, 1.5, (-15.0, length + 25.0)
    long = ends[1] - ends[0]
    road = textures.tiled("gravel.png", rng, 3840, 960, (92, 92, 96), 96)
    for start in range(0, 3840, 240):
        road[start : start + 110, 472:486] = (205, 205, 196)
        spot = (int(rng.integers(300, 660)), start + int(rng.integers(0, 200)))
        cv2.circle(road, spot, int(rng.integers(12, 26)), (46, 44, 42), -1, cv2.LINE_AA)
    for x in (250, 700):
        road[:, x : x + 12] = textures.plaster(rng, 3840, 12, (170, 166, 158), 0.2)
    road[:, :250] = textures.tiled("brick.png", rng, 3840, 250, (130, 118, 110), 80)
    road[:, 712:] = textures.tiled("brick.png", rng, 3840, 248, (126, 122, 112), 80)
    b.rectangle((-12, ground, ends[1]), (24, 0, 0), (0, 0, -long), b.picture(road))
    sky = b.picture(textures.clouds(rng, 512, 1024))
    b.box((0, -40, length / 2), (-400, 200, 500), [sky])
    fronts = [b.picture(textures.facade(rng, 720, 800, int(rng.integers(130, 190)))) for _ in range(8)]
    for side in (-1, 1):
        z, last = ends[0], -1
        while z < ends[1]:
            deep, tall = float(rng.uniform(8, 14)), float(rng.uniform(8, 13))
            gap = float(rng.uniform(5.0, 7.5))
            pick = int(rng.choice([i for i in range(len(fronts)) if i != last]))
            b.box(
                (side * (gap + 4), ground - tall / 2, z + deep / 2),
                (8, tall, deep),
                [fronts[pick - 1], fronts[pick], fronts[pick - 1], fronts[pick]],
            )
            z, last = z + deep + float(rng.choice([0.0, 0.0, 1.5])), pick
    for z in ends:
        b.box((0, ground - 11, z), (30, 22, 2), [fronts[int(rng.integers(len(fronts)))]])
    _kerbside(b, ground, ends)
    return b.build()


def _kerbside(b: Builder, ground: float, ends: tuple[float, float]) -> None:
    rng = b.rng
    paint = [b.picture(textures.plaster(rng, 200, 420, c, 0.16)) for c in ((150, 30, 30), (40, 70, 120), (180, 180, 170), (60, 90, 60))]
    glass = [
        b.picture((textures.photo(name)[: 3 * 100, : 4 * 100] * 0.6).astype(np.uint8))
        for name in ("rocket.jpg", "coffee.png", "hubble_deep_field.jpg")
    ]
    post = b.picture(textures.plaster(rng, 512, 64, (110, 100, 80), 0.3))
    crate = b.picture(textures.books(rng, 200, 240, 3))
    sign = [b.picture(textures.photo(name)[::2, ::2].copy()) for name in ("astronaut.png", "chelsea.png", "moon.png")]
    for side in (-1, 1):
        z = ends[0] + 4
        while z < ends[1] - 8:
            kind = rng.random()
            if kind < 0.45:
                color, window = paint[int(rng.integers(4))], glass[int(rng.integers(3))]
                x = side * float(rng.uniform(3.0, 3.4))
                b.box((x, ground - 0.6, z), (1.7, 0.8, 4.1), [color])
                b.box((x, ground - 1.25, z + 0.2), (1.5, 0.55, 2.2), [window, window, window, window, color])
                z += 6.5
            elif kind < 0.75:
                x = side * float(rng.uniform(4.0, 4.6))
                b.box((x, ground - 2.5, z), (0.16, 5.0, 0.16), [post])
                b.box((x - side * 0.3, ground - 2.6, z), (0.9, 0.9, 0.05), [sign[int(rng.integers(3))]])
                z += 4.5
            else:
                b.box((side * 4.3, ground - 0.55, z), (0.9, 1.1, 1.2), [crate, post], float(rng.uniform(-0.4, 0.4)))
                z += 3.5


BAY = 2.0
"""Metres after which the hall repeats."""


def hall(seed: int = 0, length: float = 60.0) -> World:
    """A hall along +z, 4.4 x 3 m, of equal bays: the same wall, floor, ceiling and columns every BAY metres, so that places look alike."""
    b = Builder(np.random.default_rng(seed + 2000))
    rng, half, low, high = b.rng, 2.2, 1.4, -1.6
    wall = textures.tiled("brick.png", rng, _texels(low - high), _texels(BAY), (150, 140, 128), 200)
    textures.hang(wall, rng, "coffee.png", 130, 180, 250)
    side = b.picture(wall)
    floor = b.picture(textures.wood(rng, _texels(BAY), _texels(2 * half), (142, 110, 80)))
    above = b.picture(textures.plaster(rng, _texels(BAY) // 2, _texels(half), (190, 186, 176), 0.12))
    column = b.picture(textures.tiled("gravel.png", rng, _texels(low - high), 128, (160, 150, 140), 96))
    for bay in range(-2, round(length / BAY) + 2):
        near, far, middle = bay * BAY, (bay + 1) * BAY, (bay + 0.5) * BAY
        b.rectangle((-half, high, near), (0, 0, BAY), (0, low - high, 0), side)
        b.rectangle((half, high, far), (0, 0, -BAY), (0, low - high, 0), side)
        b.rectangle((-half, low, far), (2 * half, 0, 0), (0, 0, -BAY), floor)
        b.rectangle((-half, high, near), (2 * half, 0, 0), (0, 0, BAY), above)
        for x in (-1.7, 1.7):
            b.box((x, (low + high) / 2, middle), (0.3, low - high, 0.3), [column])
    end = b.picture(textures.facade(rng, _texels(low - high), _texels(2 * half), 200))
    b.rectangle((-half, high, length + 2 * BAY), (2 * half, 0, 0), (0, low - high, 0), end)
    b.rectangle((half, high, -2 * BAY), (-2 * half, 0, 0), (0, low - high, 0), end)
    return b.build()
