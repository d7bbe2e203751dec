"""Pairs of keyframes far apart in time that show the same place: by the map where it can be trusted, by appearance where it has drifted."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vipe_dag.stages.mapping import Map

Float = NDArray[np.float64]

_PLACES = 256
"""Keyframes of a map up to which each is a place of its own; of longer ones, neighbours share one. One pair says that two places meet:
more of the same add little to what is known, but each ties two cameras that a solve then cannot eliminate by themselves, and its memory
grows with the square of their number."""
_SAMPLES = 48
_WORDS = 64
_TAUGHT = 64 * _WORDS
"""Features that a vocabulary is learned from."""


def overlap(scene: Map, keyframes: Sequence[int]) -> NDArray[np.float32]:
    """Share (K, K) of the points of each keyframe (row) that the map puts into the picture of another (column), seen within 45 degrees."""
    count = len(keyframes)
    rotation = np.stack([scene.rotation[k] for k in keyframes])
    translation = np.stack([scene.translation[k] for k in keyframes])
    width, height = scene.m.frames.width, scene.m.frames.height
    half = np.array([(width - 1) / 2, (height - 1) / 2])
    limit = (half + 1) / scene.params[:2]
    shift = (half - scene.params[2:4]) / scene.params[:2]
    centre = -(rotation.transpose(0, 2, 1) @ translation[..., None])[..., 0]
    result = np.zeros((count, count), np.float32)
    for i, k in enumerate(keyframes):
        points = scene.world_points(k, slice(scene.m.grid_count))
        points = points[:: max(1, len(points) // _SAMPLES)]
        camera = points[None, :, :3] @ rotation.transpose(0, 2, 1) + translation[:, None] * points[None, :, 3:]
        z = np.maximum(camera[..., 2], 1e-9)
        inside = (np.abs(camera[..., 0] / z - shift[0]) < limit[0]) & (np.abs(camera[..., 1] / z - shift[1]) < limit[1])
        from_here = points[:, :3] - points[:, 3:] * centre[i]
        from_there = points[None, :, :3] - points[None, :, 3:] * centre[:, None]
        cosine = (from_there * from_here).sum(-1) / (np.linalg.norm(from_there, axis=-1) * np.linalg.norm(from_here, axis=-1) + 1e-12)
        result[i] = ((camera[..., 2] > 1e-6) & inside & (cosine > 0.7)).mean(1)
    return np.asarray(np.minimum(result, result.T), np.float32)


def likeness(scene: Map, keyframes: Sequence[int]) -> NDArray[np.float32]:
    """Cosine similarity (K, K) of TF-IDF histograms over a visual vocabulary learned from the clip itself (Sivic and Zisserman 2003)."""
    features = [scene.m.features[k] for k in keyframes]
    total = sum(len(f.uv) for f in features)
    if total < 4 * _WORDS:
        return np.zeros((len(keyframes), len(keyframes)), np.float32)
    cv2.setRNGSeed(7)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 10, 1e-3)
    sample = np.concatenate([f.every(max(1, total // _TAUGHT)).descriptor for f in features])
    _, _, words = cv2.kmeans(sample, _WORDS, np.empty(0, np.int32), criteria, 1, cv2.KMEANS_PP_CENTERS)
    histogram = np.zeros((len(keyframes), _WORDS), np.float32)
    for row, seen in enumerate(features):
        if len(seen.uv):
            nearest = (
                torch.from_numpy(seen.descriptor) @ torch.from_numpy(words).T - 0.5 * torch.from_numpy(words).square().sum(1)
            ).argmax(1)
            histogram[row] = np.bincount(nearest.numpy(), minlength=_WORDS)
    histogram *= np.log(len(keyframes) / np.maximum((histogram > 0).sum(0), 1)) + 0.1
    histogram /= np.linalg.norm(histogram, axis=1, keepdims=True) + 1e-9
    return np.asarray(histogram @ histogram.T, np.float32)


def far_pairs(scene: Map, keyframes: Sequence[int], alike: NDArray[np.float32], radius: int, per_keyframe: float) -> list[tuple[int, int]]:
    """Candidates (earlier, later), best first: overlapping by the map, then alike by appearance, `likeness` (K, K). At most `per_keyframe`
    times the number of keyframes, or of places where there are fewer.

    A chosen pair suppresses its neighbours, direct ones or those of the same places, so that the budget is spent on different places.
    """
    count = len(keyframes)
    if count <= radius + 1:
        return []
    i, j = np.triu_indices(count, radius + 1)
    by_map, by_look = overlap(scene, keyframes)[i, j], alike[i, j]
    budget, apart = max(1, int(per_keyframe * min(count, _PLACES))), max(1, count // _PLACES)
    chosen: list[tuple[int, int]] = []
    blocked = np.zeros((count, count), bool)
    for score, least, share in ((by_map, 0.3, budget), (by_look, 0.5, budget // 3)):
        taken = 0
        for index in np.argsort(-score, kind="stable"):
            if score[index] < least or taken >= share:
                break
            a, b = int(i[index]), int(j[index])
            if blocked[a, b]:
                continue
            blocked[max(0, a - apart) : a + apart + 1, max(0, b - apart) : b + apart + 1] = True
            chosen.append((keyframes[a], keyframes[b]))
            taken += 1
    return chosen
