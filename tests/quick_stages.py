"""Stage functions that take no time, for tests of what is around them: they have the shapes of the real ones and depend on their inputs."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import vipe_dag.stages
from vipe_dag.results import AlignedBlock, BaPoses, DepthBlock, Intrinsics, Keyframes
from vipe_dag.sequence import DepthSequence, FrameSequence

BLOCK = 8
GRID = (3, 4)


def select(frames: FrameSequence, config: Any, progress: Callable[[int], None] | None = None) -> Keyframes:
    count = len(frames)
    brightness = np.array([frames.rgb(row).mean() for row in range(count)], np.float32)
    chosen = np.arange(0, count, 4, dtype=np.int64)
    flow = np.zeros((len(chosen), *GRID, 2), np.float16)
    return Keyframes(
        keyframe=chosen,
        motion=brightness,
        segment=np.zeros(count, np.int32),
        sharpness=np.ones(count, np.float32),
        flow_to_next=flow,
        flow_from_next=flow,
        flags=(),
    )


def calibrate(frames: FrameSequence, keyframes: Keyframes, config: Any, given: Any, **_: Any) -> Intrinsics:
    focal = 0.8 * frames.width if given is None else float(given.scaled(frames.width, frames.height).params[0])
    params = np.array([focal, focal, (frames.width - 1) / 2, (frames.height - 1) / 2, 0, 0, 0, 0, 0])
    return Intrinsics(
        camera_model="pinhole",
        params=params,
        params_std=np.full(9, 0.0 if given is not None else 1.0),
        source="estimated" if given is None else "given",
        candidate_focal=np.array([focal]),
        candidate_cost=np.array([1.0]),
        focal_observable=True,
        flags=(),
    )


def solve(frames: FrameSequence, keyframes: Keyframes, intrinsics: Intrinsics, config: Any, **_: Any) -> BaPoses:
    count, kept = len(frames), len(keyframes.keyframe)
    cam2world = np.tile(np.eye(4), (count, 1, 1))
    cam2world[:, 0, 3] = np.arange(count) * 0.1
    return BaPoses(
        cam2world=cam2world,
        tracked=np.ones(count, bool),
        segment=np.zeros(count, np.int32),
        position_std=np.full(count, 0.01),
        frame_residual_px=np.full(count, 0.3, np.float32),
        inlier_share=np.full(count, 0.9, np.float32),
        keyframe=keyframes.keyframe,
        point_uv=np.ones((kept, *GRID, 2), np.float32),
        inverse_depth=np.full((kept, *GRID), 0.5, np.float32),
        valid=np.ones((kept, *GRID), bool),
        residual_px=np.full((kept, *GRID), 0.3, np.float32),
        camera_model=intrinsics.camera_model,
        params=intrinsics.params,
        params_std=intrinsics.params_std,
        parallax=np.array([True]),
        residual_px_median=0.3,
        iterations=5,
        flags=(),
    )


def triangulate(frames: FrameSequence, poses: BaPoses, config: Any, **_: Any) -> Iterator[DepthBlock]:
    for start in range(0, len(frames), BLOCK):
        shape = (min(BLOCK, len(frames) - start), frames.height, frames.width)
        yield DepthBlock(start, np.full(shape, 2.0, np.float32), np.full(shape, 200, np.uint8), np.ones(shape, bool))


def align(frames: FrameSequence, depth: DepthSequence, poses: BaPoses, config: Any, **_: Any) -> Iterator[AlignedBlock]:
    for start in range(0, len(frames), BLOCK):
        rows = [depth.depth(row) for row in range(start, min(start + BLOCK, len(frames)))]
        z_depth, confidence, measured = (np.stack([row[part] for row in rows]) for part in range(3))
        ones = np.ones(len(rows))
        yield AlignedBlock(start, z_depth, confidence, measured, ones, ones * 0, np.full(len(rows), 0.01, np.float32))


QUICK: dict[str, Callable[..., Any]] = {
    "keyframes.select": select,
    "intrinsics.calibrate": calibrate,
    "ba_poses.solve": solve,
    "dense_depth.triangulate": triangulate,
    "aligned_depth.align": align,
}


def install(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Replaces the functions of all stages but `frames`; returns how often each stage was entered."""
    calls: Counter[str] = Counter()
    for name, quick in QUICK.items():
        stage, function = name.split(".")
        replace(monkeypatch, stage, function, quick, calls)
    frames = importlib.import_module("vipe_dag.stages.frames")
    replace(monkeypatch, "frames", "decode", frames.decode, calls)
    return calls


def stand_in() -> None:
    """Takes the place of those modules, for good and without importing them, in a process that is there for nothing else."""
    for name, quick in QUICK.items():
        stage, _, function = name.partition(".")
        module = ModuleType(f"vipe_dag.stages.{stage}")
        setattr(module, function, quick)
        sys.modules[module.__name__] = module
        setattr(vipe_dag.stages, stage, module)


def replace(monkeypatch: pytest.MonkeyPatch, stage: str, function: str, quick: Callable[..., Any], calls: Counter[str]) -> None:
    """Makes one function of a stage count its calls and do what `quick` does."""

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[stage] += 1
        return quick(*arguments, **named)

    monkeypatch.setattr(importlib.import_module(f"vipe_dag.stages.{stage}"), function, counted)
