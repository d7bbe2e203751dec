"""The groups against matrix exponentials, their axioms, and the real lietorch's interface."""

import math
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vipe_kernels import lie
from vipe_kernels.lie import SE3, SO3, RxSO3, Sim3, native

GROUPS = [SO3, RxSO3, SE3, Sim3]
SHAPES = [(), (1,), (3,), (2, 1), (2, 3)]
ANGLES = [0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-3, 0.0099, 0.0101, 0.1, 0.9999, 1.0, 1.0001, 2.0, 3.0, math.pi - 1e-4, math.pi - 1e-9]
F64 = torch.float64


@pytest.fixture(params=GROUPS, ids=lambda group: group.__name__)
def group(request: pytest.FixtureRequest) -> type[lie.LieGroup]:
    return request.param


def tangents(group: type[lie.LieGroup], shape: tuple[int, ...] = (20,), seed: int = 0) -> Tensor:
    """Random tangents with rotation angles below pi, translations of a few units, scales 0.2 to 5."""
    a = torch.randn(*shape, group.manifold_dim, dtype=F64, generator=torch.Generator().manual_seed(seed))
    start = 3 * group.has_translation
    angle = a[..., start : start + 3].norm(dim=-1, keepdim=True)
    a[..., start : start + 3] *= 3.0 * torch.rand(angle.shape, dtype=F64, generator=torch.Generator().manual_seed(seed)) / angle
    return a


def elements(group: type[lie.LieGroup], shape: tuple[int, ...] = (20,), seed: int = 0) -> lie.LieGroup:
    return group.exp(tangents(group, shape, seed))


def at_angle(group: type[lie.LieGroup], angle: float) -> Tensor:
    """A tangent (1, m) of that rotation angle, about an axis in general position."""
    a = tangents(group, (1,), seed=3)
    start = 3 * group.has_translation
    a[..., start : start + 3] = angle * torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=F64), dim=0)
    return a


def generator_matrix(group: type[lie.LieGroup], a: Tensor) -> Tensor:
    """The element of the Lie algebra as a matrix (..., 4, 4), whose matrix exponential is the slow reference."""
    start = 3 * group.has_translation
    x, y, z = a[..., start : start + 3].unbind(-1)
    matrix = torch.zeros(*a.shape[:-1], 4, 4, dtype=a.dtype)
    matrix[..., 0, 1], matrix[..., 0, 2], matrix[..., 1, 2] = -z, y, -x
    matrix[..., 1, 0], matrix[..., 2, 0], matrix[..., 2, 1] = z, -y, x
    if group.has_translation:
        matrix[..., :3, 3] = a[..., :3]
    if group.has_scale:
        matrix[..., 0, 0] = matrix[..., 1, 1] = matrix[..., 2, 2] = a[..., -1]
    return matrix


def assert_same(X: lie.LieGroup, Y: lie.LieGroup) -> None:
    """Equal as transformations: q and -q are the same."""
    torch.testing.assert_close(X.matrix(), Y.matrix(), atol=1e-11, rtol=1e-11)


class TestAxioms:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_closure_keeps_shape_and_unit_quaternions(self, group, shape):
        product = elements(group, shape) * elements(group, shape, seed=1)
        assert product.shape == shape
        assert product.data.shape == (*shape, group.embedded_dim)
        torch.testing.assert_close(SO3(product).data.norm(dim=-1), torch.ones(shape, dtype=F64))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_associativity(self, group, shape):
        X, Y, Z = (elements(group, shape, seed) for seed in range(3))
        assert_same((X * Y) * Z, X * (Y * Z))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_identity_changes_nothing(self, group, shape):
        X = elements(group, shape)
        assert_same(X * group.IdentityLike(X), X)
        assert_same(group.Identity(*shape, dtype=F64) * X, X)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_inverse_undoes_on_both_sides(self, group, shape):
        X = elements(group, shape)
        assert_same(X * X.inv(), group.IdentityLike(X))
        assert_same(X.inv() * X, group.IdentityLike(X))

    @pytest.mark.parametrize(("left", "right"), [((4, 1), (3,)), ((), (2, 3)), ((2, 3), ()), ((1,), (5,))])
    def test_batches_broadcast(self, group, left, right):
        X, Y, a = elements(group, left), elements(group, right, seed=1), tangents(group, right, seed=2)
        expected = torch.broadcast_shapes(left, right)
        torch.testing.assert_close((X * Y).matrix(), X.matrix() @ Y.matrix())
        assert (X * Y).shape == X.retr(a).shape == expected
        assert X.adj(a).shape == X.adjT(a).shape == (*expected, group.manifold_dim)
        assert X.act(a[..., :3]).shape == (*expected, 3)

    def test_groups_do_not_mix(self):
        with pytest.raises(TypeError, match="cannot compose SE3 with SO3"):
            SE3.Identity(1) * SO3.Identity(1)


class TestExpLog:
    @pytest.mark.parametrize("angle", ANGLES)
    def test_exp_equals_the_matrix_exponential(self, group, angle):
        a = at_angle(group, angle)
        torch.testing.assert_close(group.exp(a).matrix(), torch.matrix_exp(generator_matrix(group, a)), atol=1e-13, rtol=1e-12)

    @pytest.mark.parametrize("angle", ANGLES)
    def test_log_undoes_exp(self, group, angle):
        a = at_angle(group, angle)
        torch.testing.assert_close(group.exp(a).log(), a, atol=1e-12, rtol=1e-11)

    @pytest.mark.parametrize("angle", ANGLES)
    def test_small_angles_keep_their_digits(self, angle):
        """Relative precision, which an absolute tolerance would hide."""
        a = at_angle(SE3, angle)
        torch.testing.assert_close(SE3.exp(a).log()[..., 3:], a[..., 3:], atol=0, rtol=1e-11)

    @pytest.mark.parametrize("sigma", [0.0, 1e-12, -1e-9, 1e-6, -1e-3, 0.1, -1.0, 3.0, -6.0, 9.0])
    @pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 1.0, math.pi - 1e-3])
    def test_sim3_near_every_singularity_of_its_closed_form(self, sigma, angle):
        a = at_angle(Sim3, angle)
        a[..., 6] = sigma
        expected = torch.matrix_exp(generator_matrix(Sim3, a))
        torch.testing.assert_close(Sim3.exp(a).matrix(), expected, atol=1e-12, rtol=1e-11)
        torch.testing.assert_close(Sim3.exp(a).log(), a, atol=1e-11, rtol=1e-10)

    def test_exp_undoes_log_at_a_half_turn(self, group):
        X = group.exp(at_angle(group, math.pi))
        assert X.log().isfinite().all()
        assert_same(group.exp(X.log()), X)

    def test_angles_beyond_pi_come_back_within(self):
        a = at_angle(SO3, 1.5 * math.pi)
        assert SO3.exp(a).log().norm().item() == pytest.approx(0.5 * math.pi)
        assert_same(SO3.exp(SO3.exp(a).log()), SO3.exp(a))

    def test_opposite_quaternions_are_one_rotation(self):
        X = elements(SO3)
        torch.testing.assert_close(SO3(-X.data).log(), X.log())

    def test_quaternions_are_normalised_where_they_are_read(self, group):
        X, p = elements(group), torch.randn(20, 3, dtype=F64)
        stretched = X.data.clone()
        start = 3 * group.has_translation
        stretched[..., start : start + 4] *= 1.7
        torch.testing.assert_close(group(stretched).act(p), X.act(p))
        torch.testing.assert_close(group(stretched).log(), X.log())

    def test_float32_round_trip(self, group):
        a = tangents(group, (200,)).float()
        X = group.exp(a)
        assert X.dtype == torch.float32
        torch.testing.assert_close(X.log(), a, atol=2e-5, rtol=2e-5)

    def test_long_products_stay_rotations(self):
        step, X = elements(SO3, (1,)).float(), SO3.Identity(1)
        for _ in range(2000):
            X = step * X
        assert X.data.norm().item() == pytest.approx(1, abs=1e-6)


class TestAdjoint:
    def test_moves_tangents_from_right_to_left(self, group):
        X, a = elements(group), 0.3 * tangents(group, seed=1)
        assert_same(X * group.exp(a), group.exp(X.adj(a)) * X)

    def test_transpose(self, group):
        """<b, Ad(X) a> = <Ad(X)^T b, a>."""
        X, a, b = elements(group), tangents(group, seed=1), tangents(group, seed=2)
        torch.testing.assert_close((b * X.adj(a)).sum(-1), (X.adjT(b) * a).sum(-1))

    def test_of_a_product_is_the_product(self, group):
        X, Y, a = elements(group), elements(group, seed=1), tangents(group, seed=2)
        torch.testing.assert_close((X * Y).adj(a), X.adj(Y.adj(a)), atol=1e-11, rtol=1e-11)

    def test_retraction_is_on_the_left(self, group):
        X, a = elements(group), tangents(group, seed=1)
        assert_same(X.retr(a), group.exp(a) * X)


class TestAction:
    def test_on_points_is_the_matrix_on_homogeneous_points(self, group):
        X, p = elements(group), torch.randn(20, 3, dtype=F64)
        expected = (X.matrix() @ torch.cat((p, torch.ones(20, 1)), -1)[..., None])[..., :3, 0]
        torch.testing.assert_close(X.act(p), expected)
        torch.testing.assert_close(X * p, expected)

    @pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
    def test_on_homogeneous_points_weighs_the_translation(self, group, weight):
        X, p = elements(group), torch.randn(20, 4, dtype=F64)
        p[:, 3] = weight
        torch.testing.assert_close(X.act(p), (X.matrix() @ p[..., None])[..., 0])

    def test_composes(self, group):
        X, Y, p = elements(group), elements(group, seed=1), torch.randn(20, 3, dtype=F64)
        torch.testing.assert_close((X * Y) * p, X * (Y * p))

    def test_one_pose_per_edge_moves_many_points(self):
        X, p = elements(SE3, (2, 1)), torch.randn(2, 50, 3, dtype=F64)
        torch.testing.assert_close(X.act(p)[1], SE3(X.data[1]).act(p[1]))

    def test_translation_is_where_the_origin_goes(self, group):
        X = elements(group)
        torch.testing.assert_close(X.translation(), X.matrix()[..., 3])

    def test_other_sizes_are_refused(self):
        with pytest.raises(ValueError, match=r"SE3 acts on points .* not \(5, 2\)"):
            SE3.Identity(1).act(torch.zeros(5, 2))


class TestMatrix:
    def test_from_matrix_undoes_matrix(self, group):
        X = elements(group, (4, 5))
        assert_same(group.from_matrix(X.matrix()), X)

    @pytest.mark.parametrize("axis", range(3))
    def test_from_matrix_at_half_turns(self, axis):
        phi = torch.zeros(3, dtype=F64)
        phi[axis] = math.pi
        X = SO3.exp(phi)
        assert_same(SO3.from_matrix(X.matrix()[:3, :3]), X)

    def test_from_matrix_refuses_other_shapes(self):
        with pytest.raises(ValueError, match=r"SE3 cannot be read from matrices of shape \(3, 3\)"):
            SE3.from_matrix(torch.eye(3))


class TestGradients:
    @pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.5, 2.0, 3.0])
    def test_of_the_round_trip_is_the_identity(self, group, angle):
        a = at_angle(group, angle)[0]
        J = torch.autograd.functional.jacobian(lambda x: group.exp(x).log(), a)
        torch.testing.assert_close(J, torch.eye(group.manifold_dim, dtype=F64), atol=1e-8, rtol=0)

    def test_are_finite_at_the_identity(self, group):
        data = group.Identity(2, dtype=F64).data.requires_grad_()
        X, p, a = group(data), torch.zeros(2, 3, dtype=F64), torch.zeros(2, group.manifold_dim, dtype=F64)
        outputs = (X.log(), X.inv().data, (X * X).data, X.act(p), X.matrix(), X.adj(a), X.adjT(a), X.retr(a).data)
        for out in outputs:
            assert torch.autograd.grad(out.sum(), data, retain_graph=True)[0].isfinite().all()

    def test_match_finite_differences(self, group):
        X, p = elements(group, (2,)), torch.randn(2, 3, dtype=F64)
        assert torch.autograd.gradcheck(lambda a: (X.retr(a).inv() * X).act(p), tangents(group, (2,), seed=1).requires_grad_())
        assert torch.autograd.gradcheck(lambda a: X.adj(X.adjT(a)), tangents(group, (2,), seed=1).requires_grad_())

    def test_of_the_action_by_the_left_perturbation_is_known(self):
        """d (Exp(xi) X p) / d xi at 0 = [I | -[X p]x]."""
        X, p = elements(SE3, ()), torch.randn(3, dtype=F64)
        J = torch.autograd.functional.jacobian(lambda xi: X.retr(xi).act(p), torch.zeros(6, dtype=F64))
        cross = generator_matrix(SO3, X.act(p))[:3, :3]
        torch.testing.assert_close(J, torch.cat((torch.eye(3, dtype=F64), -cross), -1))


class TestContainer:
    def test_layout_is_lietorchs(self):
        a = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, math.pi / 2, math.log(2.0)], dtype=F64)
        half = math.sqrt(0.5)
        torch.testing.assert_close(Sim3.exp(a).vec(), torch.tensor([0, 0, 0, 0, 0, half, half, 2], dtype=F64))
        torch.testing.assert_close(SE3.exp(a[:6]).data, torch.tensor([0, 0, 0, 0, 0, half, half], dtype=F64))
        assert SE3.Identity(2).data.tolist() == [[0, 0, 0, 0, 0, 0, 1]] * 2

    @pytest.mark.parametrize("shape", [(2, 3), [2, 3]])
    def test_identity_takes_integers_or_one_shape(self, group, shape):
        assert group.Identity(shape).shape == group.Identity(*shape).shape == (2, 3)
        assert group.Identity(shape, dtype=F64, device="cpu").dtype == F64

    def test_indexing_viewing_and_assigning(self, group):
        X = elements(group, (2, 3))
        assert X[0].shape == (3,)
        assert X[:, None].shape == (2, 1, 3)
        assert X.view((6,)).shape == X.view(6).shape == (6,)
        assert len(X) == 2
        assert X.tangent_shape == (2, 3, group.manifold_dim)
        X[1] = group.Identity(3, dtype=F64)
        assert_same(X[1], group.Identity(3, dtype=F64))
        assert [Y.shape for Y in X.unbind(1)] == [(2,)] * 3

    def test_cat_and_stack_join_batch_dimensions_only(self, group):
        X = elements(group, (2, 3))
        assert lie.cat([X, X], 0).shape == (4, 3)
        assert lie.cat([X, X], -1).shape == (2, 6)
        assert lie.stack([X, X], 1).shape == (2, 2, 3)
        assert lie.stack([X, X], -1).shape == (2, 3, 2)
        with pytest.raises(IndexError, match="batch dimension 2 is out of range for 2"):
            lie.cat([X, X], 2)

    def test_casts(self, group):
        X = elements(group)
        assert X.float().dtype == torch.float32
        assert X.float().double().dtype == X.to(F64).dtype == F64
        assert X.cpu().device == X.device
        assert not group(X.data.requires_grad_()).detach().data.requires_grad

    def test_random_elements_are_reproducible(self, group):
        X, Y = (group.Random(2, 3, sigma=0.1, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        assert X.shape == (2, 3)
        assert torch.equal(X.data, Y.data)

    def test_conversions_keep_the_shared_parts(self):
        X = elements(SE3)
        torch.testing.assert_close(SO3(X).data, X.data[..., 3:])
        assert_same(SE3(SE3(SO3(X))), SE3(SO3(X)))
        assert_same(Sim3(X), X)
        assert_same(RxSO3(Sim3(X)), SO3(X))

    def test_a_similarity_is_not_silently_a_rigid_motion(self):
        with pytest.raises(TypeError, match="SE3 cannot be made of Sim3"):
            SE3(Sim3.Identity(1))

    def test_scaling_the_world_scales_translations(self):
        X, p = elements(SE3, (3,)), torch.randn(3, 3, dtype=F64)
        s = torch.tensor([0.5, 2.0, 3.0], dtype=F64)
        torch.testing.assert_close(X.scale(s).act(s[:, None] * p), s[:, None] * X.act(p))

    def test_wrong_sizes_name_the_group(self, group):
        with pytest.raises(ValueError, match=f"{group.__name__} data has {group.embedded_dim} numbers .* shape \\(2, 9\\)"):
            group.InitFromVec(torch.zeros(2, 9))
        with pytest.raises(ValueError, match=f"{group.__name__} tangent has {group.manifold_dim} numbers"):
            group.exp(torch.zeros(2, 9))


def fake_lietorch(calls: list[str]) -> ModuleType:
    """The interface of lietorch 0.3: inputs contiguous, flat and of one size, operations logged."""

    def method(name: str, group: type[lie.LieGroup]):
        def call(self, *others):
            inputs = [self.data, *(getattr(other, "data", other) for other in others)]
            assert all(tensor.is_contiguous() and tensor.ndim == 2 and len(tensor) == len(inputs[0]) for tensor in inputs)
            assert len({tensor.dtype for tensor in inputs}) == 1
            calls.append(f"{group.group_name}.{name}")
            result = getattr(group, "_" + name)(*inputs)
            return type(self)(result) if name in ("inv", "mul") else result

        return call

    def fake(group: type[lie.LieGroup]) -> type:
        def exp(cls, a: Tensor):
            assert a.is_contiguous()
            calls.append(f"{group.group_name}.exp")
            return cls(group._exp(a))

        methods = {name: method(name, group) for name in ("log", "inv", "mul", "act", "adj", "adjT")}
        return type(group.group_name, (), {"__init__": lambda self, data: setattr(self, "data", data), "exp": classmethod(exp), **methods})

    module = ModuleType("lietorch")
    for group in GROUPS:
        setattr(module, group.group_name, fake(group))
    return module


@pytest.fixture
def clean_import(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delitem(sys.modules, "lietorch", raising=False)
    native._installed.cache_clear()
    yield monkeypatch
    native._installed.cache_clear()


@pytest.fixture
def pretend_cuda(clean_import: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    clean_import.setattr(native, "_on_cuda", lambda tensor: True)
    return clean_import


class TestRealLietorch:
    @pytest.fixture
    def calls(self, pretend_cuda) -> list[str]:
        calls: list[str] = []
        pretend_cuda.setitem(sys.modules, "lietorch", fake_lietorch(calls))
        return calls

    def test_computes_every_operation_on_cuda_with_equal_results(self, group, calls, monkeypatch):
        def everything() -> list[Tensor]:
            X, Y = elements(group, (2, 1)), elements(group, (3,), seed=1)
            a, p = tangents(group, (3,), seed=2), torch.ones(3, 4, dtype=F64)
            groups = (X, X.inv(), X * Y, X.retr(a))
            return [*(G.data for G in groups), X.log(), X.adj(a), X.adjT(a), X.act(p), X.act(p[:, :3].float()), X.matrix(), X.translation()]

        theirs = everything()
        assert {call.split(".")[1] for call in calls} == {"exp", "log", "inv", "mul", "act", "adj", "adjT"}
        assert {call.split(".")[0] for call in calls} == {group.group_name}
        monkeypatch.setattr(native, "_on_cuda", lambda tensor: False)
        calls.clear()
        for a, b in zip(theirs, everything(), strict=True):
            torch.testing.assert_close(a, b)
        assert not calls

    def test_is_left_alone_where_gradients_are_recorded(self, group, calls):
        a = tangents(group).requires_grad_()
        torch.autograd.grad(group.exp(a).data.sum(), a)
        assert not calls
        with torch.no_grad():
            group.exp(a)
        assert calls

    def test_is_left_alone_for_empty_batches_and_half_precision(self, group, calls):
        assert group.exp(torch.zeros(0, group.manifold_dim)).inv().shape == (0,)
        assert group.exp(torch.zeros(2, group.manifold_dim, dtype=torch.bfloat16)).shape == (2,)
        assert not calls

    def test_absent_means_plain_torch(self, pretend_cuda):
        pretend_cuda.setattr(sys, "path", [])
        assert lie.real_lietorch() is None
        assert lie.backend_for(torch.zeros(1)) is None
        assert SE3.exp(torch.zeros(2, 6)).shape == (2,)

    def test_is_returned_when_it_is_the_real_one(self, calls):
        assert lie.real_lietorch() is sys.modules["lietorch"]
        assert lie.backend_for(torch.zeros(1)) is sys.modules["lietorch"]

    def test_is_not_imported_with_our_module(self):
        code = "import sys, vipe_kernels.lie as l, torch; l.SE3.exp(torch.zeros(1, 6)); sys.exit('lietorch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestUnrelatedLietorch:
    @pytest.fixture
    def unrelated(self, clean_import, tmp_path) -> pytest.MonkeyPatch:
        """A package of the name and outline of PyPI's lietorch, first on the path."""
        package = tmp_path / "lietorch"
        package.mkdir()
        (package / "__init__.py").write_text("__version__ = '0.6.1'\nfrom lietorch import nn\n")
        (package / "nn.py").write_text("")
        clean_import.syspath_prepend(str(tmp_path))
        yield clean_import
        for name in ("lietorch", "lietorch.nn"):
            sys.modules.pop(name, None)

    def test_is_refused_with_what_it_is_what_we_need_and_the_remedy(self, unrelated):
        with pytest.raises(ImportError, match=r"not princeton-vl's.*no SO3.*PDE-G-CNN.*pip uninstall lietorch.*github.com/princeton-vl"):
            lie.real_lietorch()

    def test_is_refused_whenever_data_is_on_cuda(self, unrelated):
        unrelated.setattr(native, "_on_cuda", lambda tensor: True)
        for _ in range(2):
            with pytest.raises(ImportError, match="pip uninstall lietorch"):
                SE3.exp(torch.zeros(1, 6))

    def test_does_not_disturb_cpu_users(self, unrelated):
        assert SE3.exp(torch.zeros(1, 6)).shape == (1,)
        assert "lietorch" not in sys.modules

    @pytest.mark.parametrize(
        "error", ["OSError('libtbb.so.2: cannot open shared object file')", "ModuleNotFoundError('x', name='sklearn')"]
    )
    def test_is_explained_too_when_it_does_not_even_import(self, unrelated, tmp_path, error):
        (tmp_path / "lietorch" / "__init__.py").write_text(f"raise {error}\n")
        with pytest.raises(ImportError, match=r"does not import .*rebuild it for torch.*PDE-G-CNN.*pip uninstall lietorch"):
            lie.real_lietorch()
