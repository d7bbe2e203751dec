"""A map built on exact measurements: it grows, begins and refines to the truth; edges measured in pictures agree with the true flow."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from engine_worlds import HEIGHT, WIDTH, Rig, angle_deg, clip, config, frames, known, normal, rig
from vipe_dag.evaluate import trajectory
from vipe_dag.sequence import ArrayFrames
from vipe_dag.stages import launch, mapping, revisits
from vipe_dag.stages.inbetween import interpolate
from vipe_dag.stages.intrinsics import Solved, choose_lens, default_params
from vipe_dag.stages.mapper import Mapper, Segment
from vipe_dag.stages.mapping import Camera, Evidence, Map, pixels_schedule
from vipe_dag.stages.measurements import Edge, Measurements, stands
from vipe_kernels import bundle
from vipe_kernels.bundle import Intrinsic, Report, exp_se3
from vipe_kernels.tracking import Features

SCALES = (8.0, 3.0, 1.5, 0.7)


def exact_map(world: Rig, placed: bool = True) -> Map:
    """A Map whose edges hold the measurements of a rig, in float32 as pictures give them; placed: at the truth."""
    problem, truth = world.problem, world.truth
    count, points = problem.uv.shape[:2]
    none = Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    seen = SimpleNamespace(
        keyframes=[SimpleNamespace(row=k, uv=problem.uv[k].numpy().astype(np.float32)) for k in range(count)],
        features=[none] * count,
        unit=1.0,
        grid_count=points,
        grid_shape=(1, points),
        frames=SimpleNamespace(width=WIDTH, height=HEIGHT),
    )
    scene = Map(seen, problem.model, truth.params.numpy())  # type: ignore[arg-type]
    edges = problem.edges
    for e, (i, j) in enumerate(zip(edges.source.tolist(), edges.destination.tolist(), strict=True)):
        weight = edges.weight[e].numpy().astype(np.float32)
        scene.edges[(i, j)] = Edge.of(i, j, edges.target[e].numpy().astype(np.float32), weight, float((weight > 0).mean()))
    for k in range(count if placed else 0):
        scene.place(k, truth.rotation[k].numpy(), truth.translation[k].numpy(), truth.inverse_depth[k].numpy())
    return scene


def assert_at_truth(scene: Map, world: Rig, degrees: float = 0.01, share: float = 1e-3) -> None:
    """Cameras equal those of the rig after one change of scale."""
    keys = sorted(scene.rotation)
    truth = world.truth.translation.numpy()
    found = np.stack([scene.translation[k] for k in keys])
    scale = (found * truth).sum() / (found * found).sum()
    assert angle_deg(np.stack([scene.rotation[k] for k in keys]), world.truth.rotation).max() < degrees
    assert scale > 0
    assert np.abs(found * scale - truth).max() < share * np.abs(truth).max()


# -- the map


def test_points_of_one_keyframe_are_predicted_where_another_sees_them() -> None:
    world = rig("brown")
    scene = exact_map(world)
    for (i, j), edge in scene.edges.items():
        guess = scene.predict(i, j)
        assert guess is not None
        assert np.abs(guess[edge.index] - edge.target).max() < 1e-2


def test_an_unposed_keyframe_is_not_predicted() -> None:
    assert exact_map(rig(), placed=False).predict(0, 1) is None


def test_a_keyframe_is_added_where_its_neighbours_say() -> None:
    world = rig(points=60)
    scene = exact_map(world)
    scene.forget(3)
    found = scene.extend(3, [1, 2, 4])
    assert found is not None
    assert found.inliers > 0.99
    assert_at_truth(scene, world)


def test_a_new_keyframe_takes_the_depths_of_what_it_sees() -> None:
    world = rig(points=200)
    flat = torch.full_like(world.truth.inverse_depth, 0.4)
    scene = exact_map(Rig(world.problem, world.truth))
    for k in range(4):
        scene.place(k, world.truth.rotation[k].numpy(), world.truth.translation[k].numpy(), flat[k].numpy())
    scene.forget(4)
    scene.extend(4, [2, 3])
    assert np.median(np.abs(scene.inverse_depth[4] / 0.4 - 1)) < 0.5


def test_a_keyframe_that_sees_nothing_is_not_added() -> None:
    scene = exact_map(rig())
    scene.forget(3)
    for key, edge in scene.edges.items():
        scene.edges[key] = replace(edge, index=edge.index[:0], target=edge.target[:0], weight=edge.weight[:0])
    assert scene.extend(3, [2, 4]) is None
    assert 3 not in scene.rotation
    assert scene.extend(3, []) is None


@pytest.mark.parametrize("most", [None, 7])
@pytest.mark.parametrize("together", [256, 3])
def test_a_part_holds_each_measurement_at_the_column_of_its_point(most: int | None, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_TOGETHER", together)
    scene = exact_map(rig(points=30))
    edge = scene.edges[(1, 3)]
    scene.edges[(1, 3)] = replace(edge, index=edge.index[::2], target=edge.target[::2], weight=edge.weight[::2])
    part = scene.part([3, 4], [1], most=most)
    ends, known = part.problem.edges, {(1, 3), (3, 1), (1, 4), (4, 1), (3, 4), (4, 3)} & set(scene.edges)
    assert part.keys == [1, 3, 4]
    assert all(len(index) <= (most or 30) for index in part.points)
    assert {(part.keys[i], part.keys[j]) for i, j in zip(ends.source, ends.destination, strict=True)} == known
    for e, (i, j) in enumerate(zip(ends.source.tolist(), ends.destination.tolist(), strict=True)):
        edge = scene.edges[(part.keys[i], part.keys[j])]
        seen = {point: at for at, point in enumerate(edge.index.tolist())}
        for column, point in enumerate(part.points[i].tolist()):
            at = seen.get(point)
            assert float(ends.weight[e, column]) == (0.0 if at is None else edge.weight[at])
            assert at is None or np.array_equal(ends.target[e, column].numpy(), edge.target[at])


def test_adjusting_finds_the_truth() -> None:
    world = rig(points=60)
    scene, start = exact_map(world), world.perturbed(0.02)
    for k in range(5):
        scene.place(k, start.rotation[k].numpy(), start.translation[k].numpy(), start.inverse_depth[k].numpy())
    report = scene.adjust([1, 2, 3, 4], [0], pixels_schedule(SCALES, (8,) * 4, 1.0, tolerance=1e-6))
    assert scene.steps == report.steps > 0
    assert_at_truth(scene, world)


def test_adjusting_a_part_leaves_the_rest_alone() -> None:
    world = rig()
    scene, start = exact_map(world), world.perturbed(0.01)
    for k in range(5):
        scene.place(k, start.rotation[k].numpy(), start.translation[k].numpy(), start.inverse_depth[k].numpy())
    before = {k: (scene.rotation[k].copy(), scene.translation[k].copy()) for k in (0, 1, 4)}
    scene.adjust([2, 3], [0, 1], pixels_schedule((4.0,), (3,), 1.0))
    for k, (rotation, translation) in before.items():
        assert np.array_equal(scene.rotation[k], rotation)
        assert np.array_equal(scene.translation[k], translation)


def test_nothing_measured_is_nothing_to_adjust() -> None:
    scene = exact_map(rig())
    scene.edges.clear()
    assert scene.adjust([1, 2], [0], pixels_schedule((4.0,), (3,), 1.0)).cost == 0.0


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_moving_and_scaling_the_whole_map_changes_no_prediction(seed: int) -> None:
    scene = exact_map(rig())
    wanted = scene.predict(1, 3)
    r, t = (x.numpy() for x in exp_se3(normal((6,), seed)))
    for k in range(5):
        scene.place(k, scene.rotation[k] @ r, scene.rotation[k] @ t + scene.translation[k], scene.inverse_depth[k])
    scene.rescale(range(5))
    assert np.allclose(scene.predict(1, 3), wanted, atol=1e-3)
    scene.anchor(range(5))
    assert np.allclose(scene.rotation[0], np.eye(3))
    assert np.allclose(scene.translation[0], 0.0)
    assert np.allclose(scene.predict(1, 3), wanted, atol=1e-3)


def test_rescaling_makes_the_median_inverse_depth_one() -> None:
    scene = exact_map(rig())
    scene.rescale(range(5))
    measured = {(i, p) for (i, _), edge in scene.edges.items() for p in edge.index.tolist()}
    seen = np.array([scene.inverse_depth[i][p] for i, p in measured])
    assert np.median(seen) == pytest.approx(1.0)


def test_a_snapshot_brings_everything_back() -> None:
    world = rig(intrinsics=())
    scene = exact_map(world)
    snapshot = scene.snapshot()
    scene.params[0] *= 1.1
    for k in range(5):
        scene.place(k, np.eye(3), np.ones(3), np.ones_like(scene.inverse_depth[k]))
    scene.restore(snapshot)
    assert np.array_equal(scene.params, world.truth.params.numpy())
    assert_at_truth(scene, world, 1e-9, 1e-9)


@given(sigma=st.floats(0.1, 2.0))
@settings(max_examples=6)
def test_the_noise_is_proportional_to_that_of_the_measurements(sigma: float) -> None:
    quiet, loud = rig(points=80).noisy(0.1), rig(points=80).noisy(sigma)
    ratio = mapping.noise(loud.problem, loud.truth) / mapping.noise(quiet.problem, quiet.truth)
    assert ratio == pytest.approx(sigma / 0.1, rel=1e-6)


# -- lenses


@pytest.mark.parametrize("model", ["pinhole", "brown", "fisheye"])
def test_a_lens_is_taken_up_where_it_explains_the_measurements(model: str) -> None:
    two_terms = torch.tensor([1.0] * 6 + [0.0] * 3, dtype=torch.float64)
    world = rig(model, keyframes=6, points=80, turn=0.1, fov=80.0)
    truth = replace(world.truth, params=world.truth.params * two_terms)
    scene = exact_map(replace(world, truth=truth).with_targets(bundle.transfer(world.problem, truth)[0]))
    scene.model, scene.params[4:] = "pinhole", 0.0
    camera = Camera(Intrinsic("focal", 6.0, 0.3), (), (Intrinsic("k1", 0.0, 10.0), Intrinsic("k2", 0.0, 10.0)), ())
    free, fixed, settings = range(1, 6), [0], config().intrinsics
    scene.adjust(free, fixed, pixels_schedule((8.0, 3.0), (10, 10), 1.0), (camera.focal,))
    pinhole = Solved.of(scene, free, fixed, (camera.focal,), camera, settings)

    def bend(focal: float) -> tuple[float, Map]:
        trial = scene.trial("brown", default_params(WIDTH, HEIGHT, focal))
        for k in range(6):
            trial.place(k, scene.rotation[k], scene.translation[k], scene.inverse_depth[k])
        return trial.adjust(free, fixed, pixels_schedule((8.0, 3.0), (6, 6), 1.0), camera.lens()).cost, trial

    found = choose_lens(pinhole, bend, free, fixed, camera, settings).scene
    assert found.model == model
    assert found.params[0] == pytest.approx(float(truth.params[0]), rel=2e-3)


@pytest.mark.parametrize(
    ("shift", "lens", "freed"),
    [
        (0.0, (0.0, 0.0, 0.0), {"focal"}),
        (12.0, (0.0, 0.0, 0.0), {"focal", "cx", "cy"}),
        (0.0, (-0.15, 0.05, 0.0), {"focal", "k1", "k2"}),
        (0.0, (0.2624, -0.9531, 1.1633), {"focal", "k1", "k2", "k3"}),
    ],
    ids=["nothing", "a centre beside the middle", "a lens that bends one way", "a lens that bends one way, then the other"],
)
def test_of_the_camera_is_freed_what_the_whole_map_shows(shift: float, lens: tuple[float, float, float], freed: set[str]) -> None:
    world = rig("brown", keyframes=10, points=120, turn=0.1, fov=64.0)
    params = world.truth.params.clone()
    params[2] += shift
    params[4:] = torch.tensor([lens[0], lens[1], 0.0, 0.0, lens[2]])
    truth = replace(world.truth, params=params)
    scene = exact_map(replace(world, truth=truth).with_targets(bundle.transfer(world.problem, truth)[0]).noisy(0.2))
    scene.model, scene.params[2:] = "pinhole", default_params(WIDTH, HEIGHT, 1.0)[2:]
    priors = config().ba_poses
    mapper = Mapper(scene, priors, (Camera.of(scene.m.frames, priors).focal,), np.zeros(10, np.int32))
    assert {free.name for free in mapper.refine_camera([Segment(tuple(range(10)), True)])} == freed
    assert scene.model == ("brown" if any(lens) else "pinhole")
    assert np.abs(scene.params[:4] - params[:4].numpy()).max() < 1.5
    assert np.abs(scene.params[4:] - params[4:].numpy()).max() < 0.15 * max(map(abs, lens)) + 0.01


@pytest.mark.parametrize("model", ["pinhole", "brown", "fisheye"])
def test_the_promise_of_a_lens_is_what_one_step_saves(model: str) -> None:
    scene = exact_map(rig(model, keyframes=5, points=80, turn=0.1))
    free = tuple(Intrinsic(name, 0.0, float("inf")) for name in ("k1", "k2"))
    at_truth = Evidence.of(scene, scene.part(range(1, 5), [0]), free, 1e3).gain(free)
    scene.params[4] += 1e-3
    moved = Evidence.of(scene, scene.part(range(1, 5), [0]), free, 1e3)
    assert moved.gain(free) == pytest.approx(moved.hessian[0, 0] * 1e-6, rel=0.05)
    assert at_truth < 1e-3 * moved.gain(free)


# -- rotations and parallax


def test_a_turning_camera_leaves_no_residual_beyond_rotation() -> None:
    world = rig(baseline=0.0, turn=0.1)
    scene = exact_map(world)
    relative = (world.truth.rotation[3] @ world.truth.rotation[1].T).numpy()
    assert angle_deg(scene.relative_rotation(1, 3), relative) < 1e-3
    assert scene.rotation_residual(1, 3) < 0.01


def test_a_moving_camera_leaves_more_the_farther_it_moves() -> None:
    scene = exact_map(rig(points=100))
    assert 1.0 < scene.rotation_residual(0, 1) < scene.rotation_residual(0, 3)


# -- beginning


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_window_is_placed_from_its_measurements_alone(seed: int, thorough: bool) -> None:
    world = rig(points=120, seed=seed)
    scene = exact_map(world, placed=False)
    cost = launch.launch(scene, range(5), launch.widest_pair(scene, range(5)), SCALES, thorough)
    assert cost < 5.0
    scene.adjust([1, 2, 3, 4], [0], pixels_schedule((0.7,), (10,), 1.0, tolerance=1e-7))
    assert_at_truth(scene, world, 0.05, 0.02)


def test_a_window_is_placed_although_a_fifth_is_wrong() -> None:
    world = rig(points=150).with_outliers(0.2)
    scene = exact_map(world, placed=False)
    launch.launch(scene, range(5), launch.widest_pair(scene, range(5)), SCALES, thorough=True)
    assert_at_truth(scene, world, 0.3, 0.1)


def test_a_launched_window_begins_at_the_identity() -> None:
    scene = exact_map(rig(points=120), placed=False)
    launch.launch(scene, range(5), launch.widest_pair(scene, range(5)), SCALES, thorough=False)
    assert np.allclose(scene.rotation[0], np.eye(3))
    assert np.allclose(scene.translation[0], 0.0)


def test_the_widest_pair_is_the_one_with_the_most_parallax() -> None:
    scene = exact_map(rig(points=200, baseline=0.05), placed=False)
    pair = launch.widest_pair(scene, range(5))
    assert pair is not None
    assert scene.rotation_residual(*pair) == max(scene.rotation_residual(i, j) for i, j in scene.edges if i < j)


# -- revisits and frames between


def test_overlap_is_symmetric_and_falls_with_the_angle_between_views() -> None:
    scene = exact_map(rig(points=96))
    turned = np.diag([-1.0, 1.0, -1.0])
    scene.place(4, turned @ scene.rotation[4], turned @ scene.translation[4], scene.inverse_depth[4])
    share = revisits.overlap(scene, range(5))
    assert np.array_equal(share, share.T)
    assert (share.diagonal() > 0.99).all()
    assert share[0, 1] > 0.6
    assert share[0, 4] == 0.0


@given(radius=st.integers(1, 3), budget=st.floats(0.0, 3.0))
@settings(max_examples=10)
def test_revisits_are_far_apart_in_time_and_within_the_budget(radius: int, budget: float) -> None:
    scene = exact_map(rig(keyframes=8, points=48, baseline=0.05))
    pairs = revisits.far_pairs(scene, range(8), revisits.likeness(scene, range(8)), radius, budget)
    assert all(b - a > radius for a, b in pairs)
    assert len(set(pairs)) == len(pairs) <= max(1, int(8 * budget)) * 4 / 3
    assert pairs


def test_in_a_long_video_neighbouring_keyframes_share_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = exact_map(rig(keyframes=8, points=48, baseline=0.05))
    alike = revisits.likeness(scene, range(8))
    alone = revisits.far_pairs(scene, range(8), alike, 1, 3.0)
    monkeypatch.setattr(revisits, "_PLACES", 2)
    shared = revisits.far_pairs(scene, range(8), alike, 1, 3.0)
    assert 0 < len(shared) < len(alone)
    assert all(max(abs(a - c), abs(b - d)) > 4 for (a, b), (c, d) in itertools.combinations(shared, 2))


def test_frames_between_keyframes_lie_between_them() -> None:
    scene = exact_map(rig())
    rotation, translation = interpolate(scene, 1, 2, np.array([0.0, 0.5, 1.0]))
    assert np.allclose(rotation[[0, 2]], [scene.rotation[1], scene.rotation[2]])
    assert np.allclose(translation[[0, 2]], [scene.translation[1], scene.translation[2]])
    centre = -(rotation.transpose(0, 2, 1) @ translation[..., None])[..., 0]
    assert np.allclose(centre[1], (centre[0] + centre[2]) / 2)
    half = angle_deg(rotation[1], rotation[0])
    assert half == pytest.approx(angle_deg(rotation[2], rotation[1]), rel=1e-6)


# -- measurements


def test_an_edge_agrees_with_the_true_flow() -> None:
    world = clip("room")
    m = Measurements(frames("room"), 16, 96)
    a, b = m.add([0, 3])
    edge = m.edge(a, b, m.chain([a, b]))
    flow, visible = world.flow(0, 3)
    uv = m.keyframes[a].uv[edge.index]
    at = np.rint(uv).astype(int)
    trusted = (edge.weight > 0.02) & visible[at[:, 1], at[:, 0]]
    miss = np.linalg.norm(edge.target - uv - flow[at[:, 1], at[:, 0]], axis=1)
    grid = edge.index < m.grid_count
    assert trusted[grid].sum() > 60
    assert np.median(miss[trusted & grid]) < 0.25
    assert np.quantile(miss[trusted & grid], 0.8) < 1.0
    assert 0.3 < edge.kept <= 1.0


def test_points_are_corners_first_then_features() -> None:
    m = Measurements(frames("room"), 16, 96)
    points = m.keyframes[m.add([0])[0]]
    assert m.grid_shape == (12, 16)
    assert points.uv.shape == (12 * 16 + 96, 2)
    found = m.features[0].uv
    assert np.array_equal(points.uv[m.grid_count : m.grid_count + len(found)], found)


def test_frames_are_followed_after_features_were_given_up() -> None:
    m = Measurements(frames("room"), 16, 96)
    a, b = m.add([0, 4])
    guess = m.chain([a, b])
    before = m.follow(a, 4, guess)
    m.let_go()
    after = m.follow(a, 4, guess)
    assert m.features == []
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


def test_where_flow_loses_what_passes_by_the_matches_next_to_it_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    m = Measurements(frames("room"), 16, 384)
    a, b = m.add([0, 6])
    true = m.follow(a, 6, m.chain([a, b]))
    astray = Measurements(frames("room"), 16, 384)
    astray.add([0, 6])
    monkeypatch.setattr(astray, "carry", lambda uv, *_: uv)
    miss = np.linalg.norm(astray.chain([a, b]) - true[0], axis=1)[true[1] > 0.3]
    stayed = np.linalg.norm(m.keyframes[a].uv[: m.grid_count] - true[0], axis=1)[true[1] > 0.3]
    assert np.median(stayed) > 8.0
    assert np.median(miss) < 2.5


def test_flow_that_was_followed_is_believed_whatever_matches() -> None:
    there = np.full((6, 8, 2), (5.0, -2.0), np.float16)
    m = Measurements(frames("room"), 16, 384, {(0, 6): there})
    a, b = m.add([0, 6])
    assert np.allclose(m.chain([a, b]), m.keyframes[a].uv[: m.grid_count] + np.array((5.0, -2.0)))
    assert not np.allclose(m.chain([b, a]), m.keyframes[b].uv[: m.grid_count] - np.array((5.0, -2.0)), atol=2.0)


def test_what_belongs_to_the_picture_is_not_measured() -> None:
    shown = frames("room")
    pixels = shown.rgb_array.copy()
    noise = np.random.default_rng(5).integers(0, 255, (60, 200, 3))
    pixels[:, -60:, :200] = cv2.GaussianBlur(noise.astype(np.uint8), (0, 0), 2.0)
    m = Measurements(ArrayFrames(pixels, shown.time, shown.frame), 16, 384)
    a, b = m.add([0, 6])
    edge, uv = m.edge(a, b, m.chain([a, b])), m.keyframes[a].uv
    inside = (uv[:, 0] < 190) & (uv[:, 1] > shown.height - 50)
    assert inside.sum() > 10
    assert edge.weight[inside[edge.index]].sum() < 0.1
    assert len(edge.index) > 100


@pytest.mark.parametrize("focus", [(320.0, 180.0), (100.0, 300.0)])
def test_what_is_far_ahead_may_stand(focus: tuple[float, float]) -> None:
    uv = np.random.default_rng(0).uniform((0, 0), (WIDTH, HEIGHT), (400, 2)).astype(np.float32)
    uv[0] = np.add(focus, 2.0)
    moved = (0.05 * (uv - focus)).astype(np.float32)
    assert not stands(uv, moved, np.ones(400, bool), 2.0).any()


def test_what_stands_is_measured_where_all_stands() -> None:
    uv = np.random.default_rng(0).uniform((0, 0), (WIDTH, HEIGHT), (400, 2)).astype(np.float32)
    assert not stands(uv, np.full((400, 2), 0.1, np.float32), np.ones(400, bool), 1.0).any()


def test_an_edge_has_weight_only_for_what_was_found() -> None:
    m = Measurements(frames("room"), 16, 96)
    a, b = m.add([0, 19])
    edge = m.edge(a, b, m.chain([a, b]))
    matched = set((m.grid_count + m.matches(a, b)[:, 0]).tolist())
    assert set(edge.index[edge.index >= m.grid_count].tolist()) == matched
    assert ((edge.weight > 0) & (edge.weight <= 1)).all()
    assert np.isfinite(edge.target).all()


def mapped_orbit() -> tuple[Mapper, tuple[int, ...]]:
    """The map of the orbit, built with its true camera but not closed, and its keyframes: all frames."""
    whole = frames("orbit")
    chosen = config().ba_poses.model_copy(update={"matches": 384})
    measurements = Measurements(whole, chosen.grid_columns, chosen.matches)
    measurements.add(range(len(whole)))
    camera = known("orbit")
    mapper = Mapper(Map(measurements, camera.camera_model, camera.params), chosen, (), np.zeros(len(whole), np.int32))
    (world,) = mapper.build(False, lambda: None)
    return mapper, world.keyframes


def off_the_orbit(mapper: Mapper, keyframes: tuple[int, ...]) -> float:
    """Root mean square distance of cameras from the truth, as a share of its path."""
    estimate = np.tile(np.eye(4), (len(keyframes), 1, 1))
    estimate[:, :3, 3] = [mapper.scene.centre(k) for k in keyframes]
    aligned = trajectory.align(estimate, clip("orbit").cam2world)
    miss = np.linalg.norm(aligned.estimate[:, :3, 3] - aligned.reference[:, :3, 3], axis=1)
    return float(np.sqrt(np.square(miss).mean()) / clip("orbit").path_length)


def test_a_loop_that_drifted_apart_by_many_pixels_is_closed() -> None:
    mapper, keyframes = mapped_orbit()
    scene = mapper.scene
    turn = Rotation.from_euler("y", 4, degrees=True).as_matrix()
    for k in keyframes[len(keyframes) // 2 :]:  # the second half of the map, turned about the origin
        scene.place(k, scene.rotation[k] @ turn, scene.translation[k], scene.inverse_depth[k])
    assert mapper.gap([(keyframes[0] + 6, keyframes[-1] - 6)]) > 10 * mapper.config.global_scales[0]
    assert mapper.close(keyframes, lambda: None)
    assert off_the_orbit(mapper, keyframes) < 0.01


@pytest.mark.parametrize(("narrow", "wide", "kept"), [(1.0, 2.0, "narrow"), (2.0, 1.0, "wide")])
def test_what_a_wide_kernel_pulled_is_kept_only_if_it_explains_more(
    narrow: float, wide: float, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapper, keyframes = mapped_orbit()
    scene, edges = mapper.scene, dict(mapper.scene.edges)
    pair, moved = (keyframes[0], keyframes[-1]), {"narrow": np.array([0.0, 0.0, 1.0]), "wide": np.array([0.0, 0.0, 2.0])}

    def adjusted(_k: object, _scales: object, _steps: int, _free: object, _most: int, wider: tuple[float, ...]) -> Report:
        assert pair in scene.edges
        which = "wide" if wider else "narrow"
        scene.place(keyframes[0], np.eye(3), moved[which], scene.inverse_depth[keyframes[0]])
        return Report(cost={"narrow": narrow, "wide": wide}[which])

    monkeypatch.setattr(mapper, "everything", adjusted)
    mapper.pull(keyframes, [pair], 20.0)
    assert np.array_equal(scene.translation[keyframes[0]], moved[kept])
    assert scene.edges == edges


def test_what_is_too_far_to_be_a_mistake_of_the_map_is_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    mapper, keyframes = mapped_orbit()
    measured = mapper.scene.m.matched_edge
    for shift, expected in ((20.0, 40.0 * np.sqrt(2)), (2000.0, 0.0)):  # pixels of a picture half as wide as the unit
        monkeypatch.setattr(
            mapper.scene.m, "matched_edge", lambda a, b, shift=shift: replace(measured(a, b), target=measured(a, b).target + shift)
        )
        assert mapper.gap([(keyframes[0], keyframes[5])]) == pytest.approx(expected, abs=4.0)


def test_matches_of_which_a_third_are_where_the_map_expects_them_show_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    mapper, keyframes = mapped_orbit()
    measured = mapper.scene.m.matched_edge

    def partly_elsewhere(a: int, b: int) -> Edge:
        edge = measured(a, b)
        return replace(edge, target=edge.target + 20.0 * (np.arange(len(edge.target)) % 3 > 0)[:, None].astype(np.float32))

    monkeypatch.setattr(mapper.scene.m, "matched_edge", partly_elsewhere)
    assert mapper.gap([(keyframes[0], keyframes[5])]) < mapper.config.global_scales[0]
