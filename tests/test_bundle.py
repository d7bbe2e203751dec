"""Bundle adjustment equals a plain dense reference, finds exact answers, and keeps its promises about what stays put."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundle_reference import cost, gauss_newton, normal_equations
from engine_worlds import Rig, angle_deg, focal, normal, rig, to_scale
from vipe_kernels import bundle, cameras, reduced
from vipe_kernels.bundle import Chunk, Edges, Intrinsic, Schedule, State, Stretch
from vipe_kernels.lie import SE3

MODELS = ["pinhole", "brown", "fisheye"]
ONE_STEP = Schedule((4.0,), (1,), tolerance=0.0, damping=0.0)
TO_THE_END = Schedule((1e3,), (40,), tolerance=0.0)
SHRINKING = Schedule((64.0, 16.0, 8.0, 4.0, 2.0, 1.0), (10,) * 6, tolerance=1e-6)
INTRINSICS = {
    "camera known": (),
    "focal free": (focal(),),
    "focal with prior": (focal(0.05, 6.3),),
    "focal and k1 free": (focal(), Intrinsic("k1", 0.0, 0.1)),
    "focal and k1 to k3 free": (focal(), Intrinsic("k1", 0.0, 0.1), Intrinsic("k2", 0.0, 0.1), Intrinsic("k3", 0.0, 0.5)),
    "focal and centre free": (focal(), Intrinsic("cx", 319.5, 5.0), Intrinsic("cy", 179.5, 5.0)),
}


def assert_states_equal(a: State, b: State, tolerance: float) -> None:
    for name in ("rotation", "translation", "inverse_depth", "params"):
        x, y = getattr(a, name), getattr(b, name)
        size = 1.0 if name == "rotation" else float(y.abs().max()) + 1e-12
        assert float((x - y).abs().max()) / size < tolerance, name


def assert_found(state: State, world: Rig, degrees: float = 1e-4, share: float = 1e-5) -> None:
    found, truth = to_scale(state, world.truth), world.truth
    seen = torch.zeros(len(world.problem.uv), world.problem.uv.shape[1]).index_add_(
        0, world.problem.edges.source, world.problem.edges.weight.float()
    )
    assert angle_deg(found.rotation, truth.rotation).max() < degrees
    assert float((found.translation - truth.translation).abs().max()) < share
    assert float((found.inverse_depth / truth.inverse_depth - 1).abs()[seen > 1].max()) < 10 * share


def steps(world: Rig, start: State, monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The state after one undamped step by the compiled loops of the CPU, in one call and one by one, and by the tensor operations of
    other devices."""

    def in_steps(chunk: Chunk, scale: float, wanted: bool, _keep: bool) -> bundle.Condensed:
        return bundle.condense_in_steps(chunk, scale, wanted)

    after = [bundle.solve(world.problem, start, ONE_STEP)[0]]
    monkeypatch.setattr(bundle, "_SMALL", 0)
    for condense, couple in ((bundle.condense_compiled, bundle.couple_compiled), (in_steps, bundle.couple_tensors)):
        monkeypatch.setattr(bundle, "condense", condense)
        monkeypatch.setattr(bundle, "couple", couple)
        state, report = bundle.solve(world.problem, start, ONE_STEP)
        assert report.steps == 1
        after.append(state)
    return after


# -- against the dense reference -----------------------------------------------------------------------------------------------------------


def takes(model: str, free: str) -> bool:
    return ("k1" not in free or model != "pinhole") and ("k3" not in free or model == "brown")


@pytest.mark.parametrize(("model", "free"), [(m, f) for m in MODELS for f in INTRINSICS if takes(m, f)])
def test_one_step_is_the_dense_least_squares_step(model: str, free: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = rig(model, keyframes=4, points=8, fixed=(0, 1), intrinsics=INTRINSICS[free]).noisy(0.5)
    start = world.perturbed(0.004, focal=1.01 if INTRINSICS[free] else 1.0)
    wanted = gauss_newton(world.problem, start, 4.0)
    for stepped in steps(world, start, monkeypatch):
        assert_states_equal(stepped, wanted, 2e-6)


def test_a_fisheye_lens_has_no_free_k3() -> None:
    with pytest.raises(ValueError, match="leave it out for a fisheye lens"):
        rig("fisheye", intrinsics=INTRINSICS["focal and k1 to k3 free"])


def test_one_step_with_rotations_only_is_the_dense_step(monkeypatch: pytest.MonkeyPatch) -> None:
    world = rig(keyframes=4, points=15, baseline=0.0, rotation_only=True).noisy(0.3)
    start = world.perturbed(0.01)
    wanted = gauss_newton(world.problem, start, 4.0)
    for stepped in steps(world, start, monkeypatch):
        assert_states_equal(stepped, wanted, 1e-6)


def test_one_step_with_held_depths_is_the_dense_step(monkeypatch: pytest.MonkeyPatch) -> None:
    world = rig(keyframes=4, points=10, fixed=(0,)).noisy(0.3)
    world = replace(world, problem=replace(world.problem, free_depth=torch.tensor([False, True, False, True])))
    start = world.perturbed(0.004)
    wanted = gauss_newton(world.problem, start, 4.0)
    for stepped in steps(world, start, monkeypatch):
        assert_states_equal(stepped, wanted, 2e-6)


@pytest.mark.parametrize("rotation_only", [False, True])
@pytest.mark.parametrize("count", [0, 2, 3])
@pytest.mark.parametrize("points", [40, 300])
@pytest.mark.parametrize("model", MODELS)
def test_compiled_loops_and_tensor_operations_give_the_same_sums(model: str, points: int, count: int, rotation_only: bool) -> None:
    free = (focal(0.3), Intrinsic("cx", 319.5, 5.0), Intrinsic("cy", 179.5, 5.0))[:count]
    free += () if model == "pinhole" else (Intrinsic("k1", 0.0, 0.1), Intrinsic("k2", 0.0, 0.1))
    world = rig(model, points=points, intrinsics=free).noisy(1.0).with_outliers(0.2)
    free_depth = torch.tensor([True, False, True, True, False])
    problem = replace(world.problem, rotation_only=rotation_only, free_depth=free_depth, near=0.3)
    state = world.perturbed(0.3)  # some points come close to a camera or fall behind it
    given = (whole(problem, state), 2.0)
    loops, sums = bundle.condense_compiled(*given, keep=True), bundle.condense_in_steps(*given)
    for field in fields(sums):
        if field.name != "kept":
            assert_close(getattr(loops, field.name), getattr(sums, field.name))
    move, shared = normal((len(problem.edges.source), 6), 4), normal((len(free),), 5)
    if rotation_only:
        move[:, :3] = 0.0
    assert_close(bundle.back_substitute_compiled(*given, move, shared), bundle.back_substitute_tensors(*given, move, shared))
    assert loops.kept is not None
    cameras = normal((len(problem.uv), 6), 7)
    if rotation_only:
        cameras[:, :3] = 0.0
    kept = bundle.substitute(given[0].stretch, loops.kept, loops.C, cameras, shared)
    assert_close(kept, bundle.back_substitute_tensors(*given, given[0].between(cameras), shared))
    if free:
        moves = move[..., None] * normal((len(free),), 6)
        for a, b in zip(bundle._scores_compiled(*given, moves), bundle._scores_tensors(*given, moves), strict=True):
            assert_close(a, b)
    distances = [torch.empty(len(problem.edges.source), points, dtype=problem.edges.weight.dtype) for _ in range(2)]
    bundle._residuals_compiled(given[0], distances[0])
    bundle._residuals_tensors(given[0], distances[1])
    assert torch.allclose(*distances, rtol=1e-6, atol=1e-6, equal_nan=True)
    systems = [reduced.Reduced(bundle._Plan.of(problem).pattern, len(free), state.params) for _ in range(2)]
    for couple, system in zip((bundle.couple_compiled, bundle.couple_tensors), systems, strict=True):
        couple(given[0], sums, system, 0)
    assert_close(*(system.dense() for system in systems))
    assert_close(*(system.gradient() for system in systems))


def test_nothing_is_eliminated_where_only_depths_are_free() -> None:
    world = rig().noisy(1.0)
    given = (whole(world.problem, world.truth), 2.0, False)
    a, b = bundle.condense_compiled(*given), bundle.condense_in_steps(*given)
    assert a.matrix is a.vector is b.matrix is b.vector is None
    assert_close(a.C, b.C)
    assert_close(a.w, b.w)


@pytest.mark.parametrize("rotation_only", [False, True])
def test_compiled_motions_between_cameras_are_those_of_tensors(rotation_only: bool) -> None:
    world = rig(turn=0.3)
    state, edges = world.perturbed(0.3), world.problem.edges
    chunk = whole(replace(world.problem, rotation_only=rotation_only), state)
    r, t = bundle.relative(state.rotation, state.translation, edges.source, edges.destination)
    ad = bundle.adjoint(r, t)
    if rotation_only:
        ad[:, :3] = 0.0
    for found, wanted in zip((*chunk.relative, chunk.source_tangent), (r, t, ad), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("model", MODELS)
def test_compiled_rays_and_tensor_rays_are_the_same_and_turn_alike(model: str) -> None:
    free = (focal(0.3), Intrinsic("cx", 319.5, 5.0), Intrinsic("cy", 179.5, 5.0))
    free += () if model == "pinhole" else (Intrinsic("k1", 0.0, 0.1), Intrinsic("k2", 0.0, 0.1))
    world = rig(model, intrinsics=free)
    state = world.perturbed(0.3)
    rays, d_ray = whole(world.problem, state).rays
    columns = bundle._intrinsic_columns(world.problem)
    expected, by_slot = cameras.unproject_with_jacobian(world.problem.uv, state.params, model, columns)
    assert_close(rays, expected)
    assert_close(d_ray, by_slot @ bundle._intrinsic_basis(world.problem, state.params))


def test_depths_move_alike_in_loops_and_tensors_and_never_by_more_than_half_or_thrice() -> None:
    rng = np.random.default_rng(0)
    depth, left, C = (torch.from_numpy(rng.uniform(low, high, (4, 50))) for low, high in ((0.1, 2.0), (-5.0, 5.0), (0.5, 3.0)))
    free = torch.tensor([True, True, False, True])
    loops = bundle.move_depths(depth, left, C, free)
    tensors = bundle.move_depths(depth.float(), left.float(), C.float(), free)
    assert torch.allclose(loops.float(), tensors, rtol=1e-5)
    assert torch.equal(loops[2], depth[2])
    assert bool((loops >= 0.5 * depth).all())
    assert bool((loops <= 3.0 * depth).all())


def whole(problem: bundle.Problem, state: State) -> Chunk:
    """All edges in one chunk."""
    return Chunk(problem, state, Stretch(problem.edges, slice(0, len(problem.edges.source))))


def assert_close(a: Tensor | float, b: Tensor | float) -> None:
    x, y = torch.as_tensor(a), torch.as_tensor(b)
    assert x.shape == y.shape
    assert not y.numel() or torch.allclose(x, y, rtol=1e-9, atol=1e-9 * (1 + float(y.abs().max())))


@pytest.mark.parametrize("rotation_only", [False, True])
@pytest.mark.parametrize(("model", "free"), [(m, f) for m in MODELS for f in INTRINSICS if "k1" not in f])
def test_a_whole_adjustment_takes_the_same_steps_as_one_step_by_step(
    model: str, free: str, rotation_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = rig(model, keyframes=5, points=40, fixed=(0, 3), intrinsics=INTRINSICS[free], rotation_only=rotation_only)
    world = world.noisy(0.5).with_outliers(0.2)
    held = replace(world.problem, free_depth=torch.tensor([True, False, True, True, True]))
    start, schedule = world.perturbed(0.1), Schedule((8.0, 2.0, 0.5), (12, 2, 12), tolerance=1e-9)
    whole, told = bundle.solve(held, start, schedule)
    monkeypatch.setattr(bundle, "_SMALL", 0)
    in_steps, expected = bundle.solve(held, start, schedule)
    assert_states_equal(whole, in_steps, 1e-6)
    assert told.steps == expected.steps == len(told.trace)
    assert np.allclose(told.trace, expected.trace, rtol=1e-9)
    assert (told.cost, told.mass) == pytest.approx((expected.cost, expected.mass), rel=1e-9)


@pytest.mark.parametrize("small", [0, 10**6])
def test_a_step_that_raises_the_cost_is_taken_back(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_SMALL", small)
    world = rig(points=20, intrinsics=(focal(),)).noisy(2.0).with_outliers(0.4)
    _, report = bundle.solve(world.problem, world.perturbed(0.3), Schedule((0.5,), (20,), tolerance=0.0, damping=0.0))
    costs = [cost for _, cost in report.trace]
    assert all(after <= before * (1 + 2e-6) for before, after in itertools.pairwise(costs))


@pytest.mark.parametrize("small", [0, 10**6])
def test_cameras_without_an_inverse_are_an_error(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_SMALL", small)
    world = rig(points=20).noisy(0.5)
    start = replace(world.truth, translation=torch.full_like(world.truth.translation, torch.nan))
    with pytest.raises(np.linalg.LinAlgError):
        bundle.solve(world.problem, start, Schedule((4.0,), (3,)))


def test_a_free_camera_that_nothing_was_measured_from_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    world = rig(points=20).noisy(0.5)
    edges = world.problem.edges
    lonely = replace(world.problem, edges=edges.select((edges.source != 4) & (edges.destination != 4)))
    for small in (10**6, 0):
        monkeypatch.setattr(bundle, "_SMALL", small)
        state, _ = bundle.solve(lonely, world.truth, Schedule((4.0,), (3,)))
        assert torch.allclose(state.translation[4], world.truth.translation[4], atol=1e-12)
        assert float((state.translation[3] - world.truth.translation[3]).abs().max()) > 1e-9


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fixed", [(0,), (0, 2)])
def test_cameras_eliminated_in_blocks_are_solved_as_all_together(
    model: str, fixed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = (focal(0.3),) if model == "pinhole" else (focal(0.3), Intrinsic("k1", 0.0, 0.1))
    world = rig(model, fixed=fixed, intrinsics=free).noisy(1.0)
    schedule = Schedule((4.0, 2.0), (3, 3), tolerance=0.0)
    blockwise, _ = bundle.solve(world.problem, world.perturbed(0.01), schedule)
    monkeypatch.setattr(bundle, "_SMALL", 0)
    monkeypatch.setattr(reduced, "backend_for", lambda _: "tensors")
    dense, _ = bundle.solve(world.problem, world.perturbed(0.01), schedule)
    assert_states_equal(dense, blockwise, 1e-7)


def test_the_spread_of_the_intrinsics_is_found_without_that_of_the_cameras() -> None:
    world = rig(intrinsics=(focal(0.3), Intrinsic("cx", 159.5, 5.0))).noisy(1.0)
    known = bundle.posterior(world.problem, world.truth, 1e3).intrinsic_std
    assert torch.allclose(bundle.intrinsic_std(world.problem, world.truth, 1e3), known, rtol=1e-4)


def test_cameras_that_share_nothing_take_no_memory() -> None:
    slots = [torch.tensor([[i, i + 1, i - 1 if i else 100] for i in range(99)])]
    pattern = reduced.Pattern.of(100, slots)
    assert len(pattern.rows) < 5 * 100


def test_the_reported_cost_is_the_robust_cost_and_priors() -> None:
    world = rig(keyframes=3, points=10, intrinsics=(focal(0.05, 6.3),)).noisy(0.5).with_outliers(0.2)
    state, report = bundle.solve(world.problem, world.truth, Schedule((2.0,), (3,)))
    assert report.cost == pytest.approx(cost(world.problem, state, 2.0), rel=1e-9)


def test_transfer_and_residuals_agree_with_the_reference() -> None:
    world = rig("brown", keyframes=3, points=10)
    assert float(bundle.residuals(world.problem, world.truth).nan_to_num().max()) < 1e-9
    residual = bundle.residuals(world.noisy(1.0).problem, world.truth)
    seen = world.problem.edges.weight > 0
    assert bool((residual.isnan() == ~seen).all())
    assert torch.allclose(residual[seen], (normal((*seen.shape, 2), 1)[seen]).norm(dim=-1), atol=1e-9)


# -- finding the truth ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_perturbed_start_converges_to_the_truth(model: str) -> None:
    world = rig(model)
    state, report = bundle.solve(world.problem, world.perturbed(0.05), TO_THE_END)
    assert report.cost < 1e-6
    assert_found(state, world)


@pytest.mark.parametrize("fov", [40.0, 60.0, 90.0])
def test_the_focal_length_is_found_from_motion(fov: float) -> None:
    world = rig(fov=fov, keyframes=6, turn=0.15, intrinsics=(focal(),))
    state, _ = bundle.solve(world.problem, world.perturbed(0.02, focal=1.15), TO_THE_END)
    assert float(state.params[0]) == pytest.approx(float(world.truth.params[0]), rel=1e-5)
    assert float(state.params[0]) == float(state.params[1])


def test_radial_distortion_is_found_from_motion() -> None:
    free = (focal(), Intrinsic("k1", 0.0, float("inf")))
    world = rig("brown", keyframes=6, points=60, turn=0.15, intrinsics=free)
    start = world.perturbed(0.02, focal=1.05)
    start.params[4] = 0.0
    state, _ = bundle.solve(world.problem, start, TO_THE_END)
    assert float(state.params[4]) == pytest.approx(float(world.truth.params[4]), abs=1e-4)


def test_rotations_are_found_without_translation() -> None:
    world = rig(baseline=0.0, turn=0.1, rotation_only=True)
    state, _ = bundle.solve(world.problem, world.perturbed(0.05), TO_THE_END)
    assert angle_deg(state.rotation, world.truth.rotation).max() < 1e-5
    assert float(state.translation.abs().max()) == 0.0


@given(seed=st.integers(0, 10_000))
@settings(max_examples=5)
def test_thirty_percent_outliers_are_rejected(seed: int) -> None:
    world = rig(points=60, seed=seed).with_outliers(0.3, seed)
    state, _ = bundle.solve(world.problem, world.perturbed(0.02, seed), SHRINKING)
    found = to_scale(state, world.truth)
    assert angle_deg(found.rotation, world.truth.rotation).max() < 0.05
    assert float((found.translation - world.truth.translation).abs().max()) < 2e-3


@given(seed=st.integers(0, 10_000), outliers=st.sampled_from([0.0, 0.3]), amount=st.floats(0.001, 0.3))
@settings(max_examples=15)
def test_the_cost_never_rises_at_one_scale(seed: int, outliers: float, amount: float) -> None:
    world = rig(keyframes=4, points=20, seed=seed, intrinsics=(focal(0.3),)).noisy(0.5).with_outliers(outliers)
    start = world.perturbed(amount, seed)
    _, report = bundle.solve(world.problem, start, Schedule((8.0, 2.0), (8, 8)))
    for scale in (8.0, 2.0):
        costs = [value for at, value in report.trace if at == scale]
        assert all(later <= earlier * (1 + 2e-6) for earlier, later in itertools.pairwise(costs))
    first = [value for at, value in report.trace if at == 8.0]
    assert not first or first[0] <= cost(world.problem, start, 8.0) * (1 + 2e-6)


# -- what stays as it is -------------------------------------------------------------------------------------------------------------------


@given(fixed=st.sets(st.integers(0, 4), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_fixed_keyframes_do_not_move(fixed: set[int], seed: int) -> None:
    world = rig(points=15, fixed=sorted(fixed), seed=seed).noisy(0.5)
    start = world.perturbed(0.02, seed)
    state, _ = bundle.solve(world.problem, start, Schedule((4.0,), (4,)))
    kept = sorted(fixed)
    assert torch.equal(state.rotation[kept], start.rotation[kept])
    assert torch.equal(state.translation[kept], start.translation[kept])


def test_held_depths_and_known_cameras_do_not_change() -> None:
    world = rig(points=15).noisy(0.5)
    held = torch.tensor([True, False, True, False, False])
    problem = replace(world.problem, free_depth=held)
    state, _ = bundle.solve(problem, world.truth, Schedule((4.0,), (4,)))
    assert torch.equal(state.inverse_depth[~held], world.truth.inverse_depth[~held])
    assert not torch.equal(state.inverse_depth[held], world.truth.inverse_depth[held])
    assert torch.equal(state.params, world.truth.params)


def test_solving_leaves_its_input_alone() -> None:
    world = rig(points=15, intrinsics=(focal(),)).noisy(0.5)
    start = world.perturbed(0.02)
    before = [getattr(start, name).clone() for name in ("rotation", "translation", "inverse_depth", "params")]
    bundle.solve(world.problem, start, Schedule((4.0,), (4,)))
    after = [getattr(start, name) for name in ("rotation", "translation", "inverse_depth", "params")]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@given(seed=st.integers(0, 1000))
@settings(max_examples=8)
def test_the_order_of_edges_changes_nothing(seed: int) -> None:
    world = rig(keyframes=4, points=20, intrinsics=(focal(0.3),)).noisy(0.5)
    edges, start = world.problem.edges, world.perturbed(0.01)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(edges.source)))
    mixed = Edges.of(edges.source[order], edges.destination[order], edges.target[order], edges.weight[order])
    schedule = Schedule((4.0, 2.0), (3, 3), tolerance=0.0)
    a, _ = bundle.solve(world.problem, start, schedule)
    b, _ = bundle.solve(replace(world.problem, edges=mixed), start, schedule)
    assert_states_equal(a, b, 1e-9)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = rig(points=20, intrinsics=(focal(0.3),)).noisy(0.5)
    start, schedule = world.perturbed(0.01), Schedule((4.0, 2.0), (3, 3), tolerance=0.0)
    whole, _ = bundle.solve(world.problem, start, schedule)
    residual = bundle.residuals(world.problem, whole)
    monkeypatch.setattr(bundle, "_CHUNK_ROWS", 1)
    parts, _ = bundle.solve(world.problem, start, schedule)
    assert_states_equal(whole, parts, 1e-9)
    assert torch.allclose(bundle.residuals(world.problem, whole), residual, equal_nan=True, atol=1e-12)


@given(seed=st.integers(0, 1000))
@settings(max_examples=8)
def test_measurements_without_weight_are_ignored(seed: int) -> None:
    world = rig(points=20, seed=seed).noisy(0.5)
    edges, start = world.problem.edges, world.perturbed(0.01)
    gone = torch.from_numpy(np.random.default_rng(seed).random(edges.weight.shape) < 0.3)
    weight = torch.where(gone, 0.0, edges.weight)
    elsewhere = torch.where(gone[..., None], 1e5 * normal(edges.target.shape, seed), edges.target)
    schedule = Schedule((4.0,), (4,), tolerance=0.0)
    a, _ = bundle.solve(replace(world.problem, edges=replace(edges, weight=weight)), start, schedule)
    b, _ = bundle.solve(replace(world.problem, edges=replace(edges, weight=weight, target=elsewhere)), start, schedule)
    assert_states_equal(a, b, 1e-9)


def test_points_never_seen_keep_their_depth() -> None:
    world = rig(points=20).noisy(0.5)
    weight = world.problem.edges.weight.clone()
    weight[:, :5] = 0.0
    problem = replace(world.problem, edges=replace(world.problem.edges, weight=weight))
    state, _ = bundle.solve(problem, world.truth, Schedule((4.0,), (4,)))
    assert torch.allclose(state.inverse_depth[:, :5], world.truth.inverse_depth[:, :5], rtol=1e-12)


def test_a_change_of_units_changes_nothing_but_units() -> None:
    world = rig(points=20)
    truth = replace(world.truth, translation=world.truth.translation * 7.0, inverse_depth=world.truth.inverse_depth / 7.0)
    scaled = Rig(world.problem, truth).noisy(0.5)
    a, _ = bundle.solve(scaled.problem, truth, Schedule((4.0,), (6,), tolerance=0.0))
    b, _ = bundle.solve(world.noisy(0.5).problem, world.truth, Schedule((4.0,), (6,), tolerance=0.0))
    assert_states_equal(to_scale(a, world.truth), to_scale(b, world.truth), 1e-5)


# -- where the answer is not determined ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0.0, 0.05])
def test_without_parallax_nothing_blows_up(turn: float) -> None:
    world = rig(baseline=0.0, turn=turn, intrinsics=(focal(0.3),)).noisy(0.3)
    state, report = bundle.solve(world.problem, world.perturbed(0.02), Schedule((8.0, 2.0, 1.0), (10,) * 3))
    assert np.isfinite(report.cost)
    assert all(bool(torch.isfinite(getattr(state, name)).all()) for name in ("rotation", "translation", "inverse_depth", "params"))
    assert float(state.inverse_depth.min()) > 0
    assert float((state.rotation @ state.rotation.transpose(1, 2) - torch.eye(3)).abs().max()) < 1e-9
    median = float(bundle.residuals(world.problem, state).nanmedian())
    assert median < 0.6


def test_points_behind_the_camera_are_not_residuals() -> None:
    world = rig(keyframes=3, points=10)
    turned = torch.diag(torch.tensor([-1.0, 1.0, -1.0])).double()
    rotation, translation = world.truth.rotation.clone(), world.truth.translation.clone()
    rotation[2], translation[2] = turned @ rotation[2], turned @ translation[2]
    residual = bundle.residuals(world.problem, replace(world.truth, rotation=rotation, translation=translation))
    assert bool(residual[world.problem.edges.destination == 2].isnan().all())


def test_a_problem_with_nothing_free_is_already_solved() -> None:
    world = rig(keyframes=3, points=10, fixed=(0, 1, 2))
    problem = replace(world.problem, free_depth=torch.zeros(3, dtype=torch.bool))
    state, _ = bundle.solve(problem, world.truth, Schedule((4.0,), (3,)))
    assert_states_equal(state, world.truth, 1e-12)


# -- uncertainty ---------------------------------------------------------------------------------------------------------------------------


def centres(state: State) -> Tensor:
    """Camera centres (K, 3)."""
    return -(state.rotation.transpose(1, 2) @ state.translation[..., None])[..., 0]


def dense_covariance(world: Rig, scale: float) -> Tensor:
    """Inverse of the dense Hessian of poses, depths and intrinsics, with the scale held as `posterior` says."""
    H, _ = normal_equations(world.problem, world.truth, scale)
    free = torch.nonzero(world.problem.free_pose).ravel()
    null = torch.zeros(len(H), dtype=torch.float64)
    null[: 6 * len(free)].view(-1, 6)[:, :3] = world.truth.translation[free]
    null /= null.norm()
    return torch.linalg.inv(H + torch.outer(null, null) * H.diagonal().max())


def beyond_similarities(state: State) -> Tensor:
    """What takes out of motions of K cameras (3 K,) the similarity that fits them best."""
    moves = bundle.similarities(state).flatten(0, 1)
    return torch.eye(len(moves), dtype=moves.dtype) - moves @ torch.linalg.pinv(moves)


def test_the_posterior_is_the_inverse_of_the_dense_hessian() -> None:
    world = rig(keyframes=4, points=15, turn=0.1, intrinsics=(focal(0.3),))
    found = bundle.posterior(world.problem, world.truth, 1e3)
    covariance = dense_covariance(world, 1e3)
    positions = torch.zeros(12, 12, dtype=torch.float64)
    positions[3:, 3:] = covariance[:18, :18].view(3, 6, 3, 6)[:, :3, :, :3].reshape(9, 9)
    rest = beyond_similarities(world.truth)
    wanted = (rest @ positions @ rest.T).diagonal().view(4, 3).sum(1).sqrt()
    assert torch.allclose(found.position_std, wanted, rtol=1e-3)
    assert float(found.intrinsic_std[0]) == pytest.approx(float(covariance[-1, -1].sqrt()), rel=1e-3)


def test_beside_several_fixed_cameras_the_posterior_is_of_what_is_free() -> None:
    world = rig(keyframes=5, points=15, turn=0.1, fixed=(0, 2))
    covariance = torch.linalg.inv(normal_equations(world.problem, world.truth, 1e3)[0])
    wanted = covariance.diagonal()[:18].view(3, 6)[:, :3].sum(1).sqrt()
    found = bundle.posterior(world.problem, world.truth, 1e3).position_std
    assert torch.allclose(found[torch.tensor([1, 3, 4])], wanted, rtol=1e-3)
    assert found[[0, 2]].tolist() == [0.0, 0.0]


def test_similarities_move_cameras_as_their_tangents_say() -> None:
    """Each column is the derivative of the tangent along a shift, a turn about the mean of the positions, or a growth around it."""
    state = rig(keyframes=4, turn=0.3).truth
    centre, moves, small = centres(state), bundle.similarities(state), 1e-6
    arm = centre - centre.mean(0)
    size = arm.square().sum(-1).mean().sqrt()
    for column, move in enumerate(torch.eye(7, dtype=torch.float64)):
        shifted = centre + small * (move[:3] + (torch.linalg.cross(move[3:6].expand_as(arm), arm) + move[6] * arm) / size)
        wanted = -(state.rotation @ (shifted - centre).unsqueeze(-1)).squeeze(-1) / small
        assert torch.allclose(moves[..., column], wanted, atol=1e-6)


def test_the_posterior_is_the_spread_of_repeated_measurements() -> None:
    sigma, world = 0.3, rig(keyframes=4, points=30, turn=0.1, intrinsics=(focal(),))
    found = bundle.posterior(world.problem, world.truth, 1e3)
    truth = world.truth
    focals, positions = [], []
    for seed in range(60):
        state, _ = bundle.solve(world.noisy(sigma, seed).problem, truth, Schedule((1e3,), (5,), tolerance=1e-5))
        focals.append(float(torch.log(state.params[0] / truth.params[0])))
        moved = truth.rotation @ (centres(state) - centres(truth)).unsqueeze(-1)
        positions.append((beyond_similarities(truth) @ moved.ravel()).view(4, 3).square().sum(1))
    spread = torch.stack(positions).mean(0).sqrt()
    assert float(np.std(focals)) == pytest.approx(sigma * float(found.intrinsic_std[0]), rel=0.3)
    assert torch.allclose(spread, sigma * found.position_std, rtol=0.3)


def test_the_posterior_of_a_focal_length_that_nothing_shows_is_its_prior() -> None:
    world = rig(baseline=0.0, turn=0.0, intrinsics=(focal(0.3),))
    assert float(bundle.posterior(world.problem, world.truth, 1.0).intrinsic_std[0]) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("model", ["pinhole", "brown", "fisheye"])
def test_scores_carry_the_dense_hessian_with_poses_and_depths_eliminated(model: str) -> None:
    world = rig(model=model, keyframes=4, points=30, turn=0.1, intrinsics=(focal(),)).noisy(0.3)
    state, _ = bundle.solve(world.problem, world.truth, Schedule((1e3,), (12,), tolerance=1e-12, damping=1e-8))
    hessian, scores = bundle.scores(world.problem, state, 1e3)
    found = bundle.posterior(world.problem, state, 1e3).intrinsic_std[0]
    assert float(hessian[0, 0]) == pytest.approx(float(found**-2), rel=1e-3)
    assert scores.shape == (*world.problem.uv.shape[:2], 1)
    assert abs(float(scores.sum())) < 1e-3 * float(scores.abs().sum())


@pytest.mark.parametrize("chunk", [1, 150_000])
def test_scores_of_points_add_up_to_the_gradient_of_the_intrinsics(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Gauss-Newton step of the profiled problem is the step of the whole one."""
    monkeypatch.setattr(bundle, "_CHUNK_ROWS", chunk)
    world = rig(keyframes=4, points=30, turn=0.1, intrinsics=(focal(),)).noisy(0.3)
    hessian, scores = bundle.scores(world.problem, world.truth, 1e3)
    state, _ = bundle.solve(world.problem, world.truth, Schedule((1e3,), (1,), damping=0.0))
    step = float(torch.log(state.params[0] / world.truth.params[0]))
    assert float(scores.sum() / hessian[0, 0]) == pytest.approx(step, rel=1e-3)


def test_far_points_have_uncertain_depths() -> None:
    world = rig(keyframes=3, points=40)
    found = bundle.posterior(world.problem, world.truth, 1e3)
    relative = (found.depth_std / world.truth.inverse_depth)[0]
    depth = 1 / world.truth.inverse_depth[0]
    assert float(relative[depth > 3.0].median()) > 2 * float(relative[depth < 1.7].median())


def test_more_keyframes_make_depths_more_certain() -> None:
    few, many = (bundle.posterior(w.problem, w.truth, 1e3) for w in (rig(keyframes=3), rig(keyframes=6)))
    assert float(many.depth_std[0].median()) < float(few.depth_std[0].median())


# -- motions -------------------------------------------------------------------------------------------------------------------------------

tangents = st.lists(st.floats(-2.0, 2.0), min_size=6, max_size=6).map(lambda xi: torch.tensor(xi, dtype=torch.float64))


@given(xi=tangents)
def test_the_exponential_is_that_of_the_lie_group(xi: Tensor) -> None:
    r, t = bundle.exp_se3(xi)
    matrix = SE3.exp(xi).matrix()
    assert torch.allclose(r, matrix[:3, :3], atol=1e-10)
    assert torch.allclose(t, matrix[:3, 3], atol=1e-10)


@given(xi=tangents, size=st.sampled_from([0.0, 1e-9, 1e-5, 1e-3, 1.0]))
def test_a_camera_is_moved_by_the_exponential(xi: Tensor, size: float) -> None:
    turn, shift = (normal(shape, 1) for shape in ((3, 6), (3, 3)))
    rotation, _ = bundle.exp_se3(turn)
    moves = torch.stack([size * xi, torch.zeros_like(xi), -size * xi])
    found_rotation, found_translation = bundle.perturb(moves, rotation, shift)
    r, t = bundle.exp_se3(moves)
    assert torch.allclose(found_rotation, r @ rotation, atol=1e-10)
    assert torch.allclose(found_translation, (r @ shift[..., None])[..., 0] + t, atol=1e-10)


@given(xi=tangents, eta=tangents)
def test_the_adjoint_moves_a_tangent_across_a_motion(xi: Tensor, eta: Tensor) -> None:
    a, b = SE3.exp(xi), SE3.exp(eta)
    moved = SE3.exp(bundle.adjoint(*bundle.exp_se3(xi)) @ eta)
    assert torch.allclose((moved * a).matrix(), (a * b).matrix(), atol=1e-8)


@given(seed=st.integers(0, 1000))
def test_relative_poses_take_points_from_camera_to_camera(seed: int) -> None:
    r, t = bundle.exp_se3(normal((2, 6), seed))
    world = normal((3,), seed + 1)
    rij, tij = bundle.relative(r, t, torch.tensor([0]), torch.tensor([1]))
    assert torch.allclose(rij[0] @ (r[0] @ world + t[0]) + tij[0], r[1] @ world + t[1], atol=1e-10)
