"""One camera pose from known points: exact without noise, robust with outliers, the same alone or in a batch."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine_worlds import HEIGHT, WIDTH, angle_deg, lens
from vipe_kernels import cameras, resection
from vipe_kernels.bundle import exp_se3
from vipe_kernels.resection import resect, resect_batch

FRAMES = 5


@dataclass(frozen=True)
class Views:
    """Frames that see the same points: points (F, N, 4) homogeneous, targets (F, N, 2), weights (F, N), true and starting poses."""

    model: str
    params: Tensor
    points: Tensor
    targets: Tensor
    weights: Tensor
    rotation: Tensor
    translation: Tensor
    start: tuple[Tensor, Tensor]


def views(model: str = "pinhole", seed: int = 0, count: int = 80, noise: float = 0.0, outliers: float = 0.0, far: bool = False) -> Views:
    """far: all points at infinity, where only the rotation shows."""
    rng = np.random.default_rng(seed)
    params = lens(model)
    uv = torch.from_numpy(rng.uniform((30, 30), (WIDTH - 30, HEIGHT - 30), (count, 2)))
    inverse_depth = torch.zeros(count).double() if far else torch.from_numpy(1 / rng.uniform(1.0, 4.0, count))
    points = torch.cat([cameras.unproject(uv, params, model), inverse_depth[:, None]], 1).expand(FRAMES, -1, -1)
    rotation, translation = exp_se3(torch.from_numpy(rng.normal(size=(FRAMES, 6)) * [0.1, 0.1, 0.1, 0.04, 0.04, 0.04]))
    camera = points[..., :3] @ rotation.transpose(1, 2) + translation[:, None] * points[..., 3:]
    targets = cameras.project(camera, params, model) + noise * torch.from_numpy(rng.normal(size=(FRAMES, count, 2)))
    wrong = torch.from_numpy(rng.random((FRAMES, count)) < outliers)
    anywhere = torch.from_numpy(rng.uniform((0, 0), (WIDTH, HEIGHT), (FRAMES, count, 2)))
    off_r, off_t = exp_se3(torch.from_numpy(rng.normal(size=(FRAMES, 6)) * 0.01))
    start = off_r @ rotation, (off_r @ translation[..., None])[..., 0] + off_t
    targets = torch.where(wrong[..., None], anywhere, targets)
    return Views(model, params, points, targets, torch.ones(FRAMES, count).double(), rotation, translation, start)


def solve(v: Views, **changes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights, targets = changes.get("weights", v.weights), changes.get("targets", v.targets)
    found = resect_batch(v.points, targets, weights, v.model, v.params, *v.start, unit=1.0)
    return found.rotation, found.translation, found.residual_px, found.inliers, found.position_std


@pytest.mark.parametrize("model", ["pinhole", "brown", "fisheye"])
def test_exact_measurements_give_the_exact_pose(model: str) -> None:
    v = views(model)
    rotation, translation, residual, inliers, _ = solve(v)
    assert angle_deg(rotation, v.rotation).max() < 1e-6
    assert float((translation - v.translation).abs().max()) < 1e-8
    assert float(residual.max()) < 1e-6
    assert float(inliers.min()) == pytest.approx(1.0)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_forty_percent_outliers_are_rejected(seed: int) -> None:
    v = views(seed=seed, outliers=0.4)
    rotation, translation, _, inliers, _ = solve(v)
    assert angle_deg(rotation, v.rotation).max() < 0.02
    assert float((translation - v.translation).abs().max()) < 2e-3
    assert torch.allclose(inliers, torch.full((FRAMES,), 0.6).double(), atol=0.2)


def test_points_at_infinity_give_the_rotation() -> None:
    v = views(far=True)
    rotation, translation, _, _, _ = solve(v)
    assert angle_deg(rotation, v.rotation).max() < 1e-6
    assert bool(torch.isfinite(translation).all())


def test_a_batch_gives_what_one_frame_at_a_time_gives() -> None:
    v = views(noise=0.5, outliers=0.2)
    whole = solve(v)
    for i in range(FRAMES):
        part = slice(i, i + 1)
        one = Views(v.model, v.params, v.points[part], v.targets[part], v.weights[part], *v.start, (v.start[0][part], v.start[1][part]))
        for a, b in zip(solve(one), whole, strict=True):
            assert torch.allclose(a[0], b[i], atol=1e-6)


@pytest.mark.parametrize("model", ["pinhole", "brown", "fisheye"])
def test_compiled_loops_and_tensor_operations_agree(model: str) -> None:
    v = views(model, noise=0.5, outliers=0.2)
    common = v.points, v.targets, v.weights, v.model, v.params, *v.start, (8.0,), 1
    found = resection.minimise_tensors(*common)
    for a, b in zip(resection.minimise_compiled(*common), found, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    weights = v.weights * torch.linspace(0.0, 1.0, v.weights.shape[1]).double()
    weights[1] = 0.0
    by_loops, by_tensors = (sum_up(found, weights, 1.0) for sum_up in (resection.sum_up_compiled, resection.sum_up_tensors))
    for field in fields(by_tensors):
        a, b = getattr(by_loops, field.name), getattr(by_tensors, field.name)
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), field.name


def test_absent_points_are_ignored() -> None:
    v = views(noise=0.5)
    weights = v.weights.clone()
    weights[:, ::3] = 0.0
    elsewhere = v.targets.clone()
    elsewhere[:, ::3] = 1e5
    for a, b in zip(solve(v, weights=weights), solve(v, weights=weights, targets=elsewhere), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_a_frame_without_measurements_stays_at_its_start() -> None:
    v = views()
    weights = v.weights.clone()
    weights[2] = 0.0
    rotation, translation, _, inliers, std = solve(v, weights=weights)
    assert torch.allclose(rotation[2], v.start[0][2])
    assert torch.allclose(translation[2], v.start[1][2])
    assert float(inliers[2]) == 0.0
    assert float(std[2]) > 1e3
    assert angle_deg(rotation[3], v.rotation[3]).max() < 1e-6


def test_the_position_std_is_the_spread_of_repeated_measurements() -> None:
    sigma, v = 0.2, views(count=40)
    centre = -(v.rotation.transpose(1, 2) @ v.translation[..., None])[..., 0]
    squared = []
    for seed in range(40):
        noise = sigma * torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(v.targets.shape)))
        rotation, translation, _, _, std = solve(v, targets=v.targets + noise)
        squared.append((-(rotation.transpose(1, 2) @ translation[..., None])[..., 0] - centre).square().sum(1))
    spread = torch.stack(squared).mean(0).sqrt()
    assert torch.allclose(spread, sigma * std, rtol=0.4)


def test_the_residual_is_the_median_distance() -> None:
    v = views(noise=1.0, count=400)
    _, _, residual, _, _ = solve(v)
    assert torch.allclose(residual, torch.full((FRAMES,), 1.1774).double(), rtol=0.15)  # median of a Rayleigh distribution


def test_the_best_of_several_starts_wins() -> None:
    v = views(noise=0.3)
    backwards = np.diag([-1.0, 1.0, -1.0])
    starts = [(backwards, np.zeros(3)), (v.start[0][0].numpy(), v.start[1][0].numpy())]
    arrays = v.points[0].numpy(), v.targets[0].numpy(), v.weights[0].numpy()
    found = resect(*arrays, v.model, v.params.numpy(), starts, unit=1.0)
    assert found is not None
    assert angle_deg(found.rotation, v.rotation[0]) < 0.2
    assert found.inliers > 0.95


@pytest.mark.parametrize("model", ["pinhole", "brown", "fisheye"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_pose_that_no_start_leads_to_is_searched_for(model: str, seed: int) -> None:
    v = views(model, seed, noise=0.2, outliers=0.4)
    away = exp_se3(torch.tensor([[1.5, -1.0, 0.5, 0.2, 2.5, -0.3]], dtype=torch.float64))
    starts = [((away[0] @ v.rotation[0])[0].numpy(), ((away[0] @ v.translation[0])[0] + away[1][0]).numpy())]
    given_ = (v.points[0].numpy(), v.targets[0].numpy(), v.weights[0].numpy(), v.model, v.params.numpy(), starts, 1.0)
    astray, found = resect(*given_), resect(*given_, search_below=0.5)
    assert astray is not None
    assert found is not None
    assert astray.inliers < 0.3
    assert found.inliers > 0.5
    assert angle_deg(torch.from_numpy(found.rotation)[None], v.rotation[:1]).max() < 0.2


def test_where_a_start_explains_enough_no_pose_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resection, "search", lambda *_: pytest.fail("searched"))
    v = views()
    starts = [(v.start[0][0].numpy(), v.start[1][0].numpy())]
    found = resect(
        v.points[0].numpy(), v.targets[0].numpy(), v.weights[0].numpy(), v.model, v.params.numpy(), starts, 1.0, search_below=0.9
    )
    assert found is not None
    assert found.inliers > 0.99


def test_points_at_infinity_are_nothing_to_search_by() -> None:
    v = views(far=True)
    assert resection.search(v.points[0].numpy(), v.targets[0].numpy(), v.weights[0].numpy(), v.model, v.params.numpy(), 1.0) is None


def test_too_few_points_give_no_pose() -> None:
    v = views()
    weights = np.zeros(v.weights.shape[1])
    weights[:5] = 1.0
    starts = [(np.eye(3), np.zeros(3))]
    assert resect(v.points[0].numpy(), v.targets[0].numpy(), weights, v.model, v.params.numpy(), starts, unit=1.0) is None
