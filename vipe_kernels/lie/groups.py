"""The groups: classes around a tensor of elements, with the methods of lietorch's classes.

All four are subgroups of Sim3, so every operation is written once, on a translation, a rotation and a scale of which a group may lack the
first or the last.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, overload

import torch
from torch import Tensor

from vipe_kernels.lie import rotation
from vipe_kernels.lie.native import dispatch

G = TypeVar("G", bound="LieGroup")


class _Parts(NamedTuple):
    """Translation, rotation and scale of elements (3, 4, 1 numbers), or the tau, phi and sigma of tangents (3, 3, 1)."""

    t: Tensor | None
    r: Tensor
    s: Tensor | None


class LieGroup:
    """A batch of group elements, `data` (..., embedded_dim); `shape` is the batch shape. Batches broadcast in every operation.

    `X * Y` composes (Y acts first), `X * p` acts on points. Operations raise ValueError where the last dimension does not fit the group.
    """

    group_name: ClassVar[str]
    manifold_dim: ClassVar[int]
    embedded_dim: ClassVar[int]
    has_translation: ClassVar[bool]
    has_scale: ClassVar[bool]

    def __init__(self, data: "Tensor | LieGroup") -> None:
        if isinstance(data, LieGroup):
            data = self._converted(data)
        self.data: Tensor = self._checked(data, self.embedded_dim, "data")

    @classmethod
    def Identity(cls, *batch_shape: Any, **kwargs: Any) -> Self:  # noqa: N802
        """Identity elements; the shape as integers or as one tuple, `device` and `dtype` as for torch.zeros."""
        element = [0.0] * 3 * cls.has_translation + [0.0, 0.0, 0.0, 1.0] + [1.0] * cls.has_scale
        return cls(torch.tensor(element, **kwargs).repeat(*_dimensions(batch_shape), 1))

    @classmethod
    def IdentityLike(cls, other: "LieGroup") -> Self:  # noqa: N802
        """Identity elements with the shape, device and dtype of another batch."""
        return cls.Identity(tuple(other.shape), device=other.device, dtype=other.dtype)

    @classmethod
    def InitFromVec(cls, data: Tensor) -> Self:  # noqa: N802
        """Elements from their vectors (..., embedded_dim)."""
        return cls(data)

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> Self:
        """Elements from matrices (..., 4, 4), or (..., 3, 3) where the group has no translation. Not in lietorch.

        The upper left block must be a rotation, times a positive scale for RxSO3 and Sim3; it is not checked.
        """
        size = matrix.shape[-1]
        if matrix.ndim < 2 or matrix.shape[-2] != size or size not in ((4,) if cls.has_translation else (3, 4)):
            raise ValueError(f"{cls.group_name} cannot be read from matrices of shape {tuple(matrix.shape)}")
        linear = matrix[..., :3, :3]
        scale = torch.linalg.det(linear)[..., None] ** (1 / 3) if cls.has_scale else None
        quaternion = rotation.from_matrix(linear if scale is None else linear / scale[..., None])
        return cls(_joined(_Parts(matrix[..., :3, 3] if cls.has_translation else None, quaternion, scale)))

    @classmethod
    def Random(cls, *batch_shape: Any, sigma: float = 1.0, **kwargs: Any) -> Self:  # noqa: N802
        """Exp of normal tangent vectors with standard deviation sigma; `generator`, `device`, `dtype` as for torch.randn."""
        return cls.exp(sigma * torch.randn(*_dimensions(batch_shape), cls.manifold_dim, **kwargs))

    @classmethod
    def exp(cls, a: Tensor) -> Self:
        """Exponential map of tangent vectors a (..., manifold_dim)."""
        return cls(dispatch(cls.group_name, "exp", cls._exp, cls._checked(a, cls.manifold_dim, "tangent")))

    def log(self) -> Tensor:
        """Tangent vectors (..., manifold_dim), rotation angles in [0, pi]."""
        return dispatch(self.group_name, "log", self._log, self.data)

    def inv(self) -> Self:
        return type(self)(dispatch(self.group_name, "inv", self._inv, self.data))

    def mul(self, other: Self) -> Self:
        """The composition that applies `other` first."""
        if type(other) is not type(self):
            raise TypeError(f"cannot compose {self.group_name} with {type(other).__name__}")
        return type(self)(dispatch(self.group_name, "mul", self._mul, self.data, other.data))

    def retr(self, a: Tensor) -> Self:
        """Retraction Exp(a) X for a (..., manifold_dim)."""
        return type(self).exp(a).mul(self)

    def act(self, p: Tensor) -> Tensor:
        """Transformed points, for points (..., 3) or homogeneous points (..., 4), whose translation is multiplied by the fourth entry."""
        if p.shape[-1] not in (3, 4):
            raise ValueError(f"{self.group_name} acts on points (..., 3) or (..., 4), not {tuple(p.shape)}")
        return dispatch(self.group_name, "act", self._act, self.data, p)

    def adj(self, a: Tensor) -> Tensor:
        """Ad(X) a for tangent vectors a (..., manifold_dim): X Exp(a) = Exp(Ad(X) a) X."""
        return dispatch(self.group_name, "adj", self._adj, self.data, self._checked(a, self.manifold_dim, "tangent"))

    def adjT(self, a: Tensor) -> Tensor:  # noqa: N802
        """Ad(X)^T a for cotangent vectors a (..., manifold_dim)."""
        return dispatch(self.group_name, "adjT", self._adjT, self.data, self._checked(a, self.manifold_dim, "tangent"))

    def matrix(self) -> Tensor:
        """Homogeneous matrices (..., 4, 4)."""
        basis = torch.eye(4, dtype=self.dtype, device=self.device)
        return type(self)(self.data[..., None, :]).act(basis).transpose(-1, -2)

    def translation(self) -> Tensor:
        """Where the origin goes, homogeneous as in lietorch: (..., 4) = [tx ty tz 1]."""
        return self.act(torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=self.dtype, device=self.device))

    def vec(self) -> Tensor:
        return self.data

    @property
    def shape(self) -> torch.Size:
        return self.data.shape[:-1]

    @property
    def tangent_shape(self) -> torch.Size:
        return torch.Size((*self.shape, self.manifold_dim))

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def view(self, *dims: Any) -> Self:
        """The batch reshaped; the shape as integers or as one tuple."""
        return type(self)(self.data.view(*_dimensions(dims), self.embedded_dim))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        return type(self)(self.data.to(*args, **kwargs))

    def cpu(self) -> Self:
        return type(self)(self.data.cpu())

    def cuda(self) -> Self:
        return type(self)(self.data.cuda())

    def float(self) -> Self:
        return type(self)(self.data.float())

    def double(self) -> Self:
        return type(self)(self.data.double())

    def detach(self) -> Self:
        return type(self)(self.data.detach())

    def unbind(self, dim: int = 0) -> list[Self]:
        return [type(self)(data) for data in self.data.unbind(_batch_dim(dim, len(self.shape)))]

    @overload
    def __mul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __mul__(self, other: Self) -> Self: ...
    def __mul__(self, other: Self | Tensor) -> Self | Tensor:
        return self.act(other) if isinstance(other, Tensor) else self.mul(other)

    def __getitem__(self, index: Any) -> Self:
        """Elements of the batch; the index must leave the last dimension of `data` alone, as in `X[0]`, `X[:, None]`, `X[mask]`."""
        return type(self)(self.data[index])

    def __setitem__(self, index: Any, item: Self) -> None:
        self.data[index] = item.data

    def __len__(self) -> int:
        return self.data.shape[0] if self.shape else 0

    def __repr__(self) -> str:
        return f"{self.group_name}: size={tuple(self.shape)}, device={self.device}, dtype={self.dtype}"

    @classmethod
    def _checked(cls, tensor: Tensor, size: int, what: str) -> Tensor:
        if tensor.ndim == 0 or tensor.shape[-1] != size:
            raise ValueError(
                f"{cls.group_name} {what} has {size} numbers in its last dimension; got a tensor of shape {tuple(tensor.shape)}"
            )
        return tensor

    @classmethod
    def _converted(cls, other: "LieGroup") -> Tensor:
        """`other` without the parts this group lacks; parts that `other` lacks are those of the identity."""
        if cls.has_translation and not cls.has_scale and other.has_scale:
            raise TypeError(f"{cls.group_name} cannot be made of {other.group_name}: it would change what the elements do")
        t, q, s = other._split(other.data)
        t = torch.zeros_like(q[..., :3]) if t is None else t
        s = torch.ones_like(q[..., :1]) if s is None else s
        return _joined(_Parts(t if cls.has_translation else None, q, s if cls.has_scale else None))

    @classmethod
    def _split(cls, data: Tensor) -> _Parts:
        """Parts of elements (..., embedded_dim); the quaternion is normalised."""
        start = 3 * cls.has_translation
        q = rotation.unit(data[..., start : start + 4])
        return _Parts(data[..., :3] if cls.has_translation else None, q, data[..., start + 4 :] if cls.has_scale else None)

    @classmethod
    def _split_tangent(cls, a: Tensor) -> _Parts:
        start = 3 * cls.has_translation
        return _Parts(
            a[..., :3] if cls.has_translation else None, a[..., start : start + 3], a[..., start + 3 :] if cls.has_scale else None
        )

    @classmethod
    def _exp(cls, a: Tensor) -> Tensor:
        tau, phi, sigma = cls._split_tangent(a)
        t = None if tau is None else rotation.Swirl(phi, sigma).times(tau)
        return _joined(_Parts(t, rotation.exp(phi), None if sigma is None else sigma.exp()))

    @classmethod
    def _log(cls, X: Tensor) -> Tensor:
        t, q, s = cls._split(X)
        phi, sigma = rotation.log(q), None if s is None else s.log()
        return _joined(_Parts(None if t is None else rotation.Swirl(phi, sigma).solve(t), phi, sigma))

    @classmethod
    def _inv(cls, X: Tensor) -> Tensor:
        t, q, s = cls._split(X)
        back = _Parts(None, rotation.conjugate(q), None if s is None else 1 / s)
        return _joined(back._replace(t=None if t is None else -_linear(back, t)))

    @classmethod
    def _mul(cls, X: Tensor, Y: Tensor) -> Tensor:
        x, y = cls._split(X), cls._split(Y)
        t = None if x.t is None or y.t is None else x.t + _linear(x, y.t)
        return _joined(_Parts(t, rotation.multiply(x.r, y.r), None if x.s is None or y.s is None else x.s * y.s))

    @classmethod
    def _act(cls, X: Tensor, p: Tensor) -> Tensor:
        x = cls._split(X)
        moved = _linear(x, p[..., :3])
        if p.shape[-1] == 3:
            return moved if x.t is None else moved + x.t
        weight = p[..., 3:]
        moved = moved if x.t is None else moved + weight * x.t
        return torch.cat((moved, weight.expand(*moved.shape[:-1], 1)), -1)

    @classmethod
    def _adj(cls, X: Tensor, a: Tensor) -> Tensor:
        x, (tau, phi, sigma) = cls._split(X), cls._split_tangent(a)
        phi = rotation.rotate(x.r, phi)
        if x.t is not None and tau is not None:
            tau = _linear(x, tau) + rotation.cross(x.t, phi)
            tau = tau if sigma is None else tau - sigma * x.t
        return _joined(_Parts(tau, phi, sigma))

    @classmethod
    def _adjT(cls, X: Tensor, a: Tensor) -> Tensor:  # noqa: N802
        x, (tau, phi, sigma) = cls._split(X), cls._split_tangent(a)
        back = x._replace(r=rotation.conjugate(x.r))
        if x.t is None or tau is None:
            return _joined(_Parts(None, rotation.rotate(back.r, phi), sigma))
        phi = rotation.rotate(back.r, phi + rotation.cross(tau, x.t))
        sigma = None if sigma is None else sigma - (x.t * tau).sum(-1, keepdim=True)
        return _joined(_Parts(_linear(back, tau), phi, sigma))


class SO3(LieGroup):
    """Rotations: data [qx qy qz qw], tangent [phi]. `SO3(X)` is the rotation of any other group's elements."""

    group_name, manifold_dim, embedded_dim, has_translation, has_scale = "SO3", 3, 4, False, False


class RxSO3(LieGroup):
    """Rotations with a positive scale: data [qx qy qz qw s], tangent [phi, sigma]."""

    group_name, manifold_dim, embedded_dim, has_translation, has_scale = "RxSO3", 4, 5, False, True


class SE3(LieGroup):
    """Rigid motions: data [tx ty tz qx qy qz qw], tangent [tau, phi]."""

    group_name, manifold_dim, embedded_dim, has_translation, has_scale = "SE3", 6, 7, True, False

    def scale(self, s: Tensor) -> "SE3":
        """The same motions in a world s (...) times as large."""
        return SE3(torch.cat((self.data[..., :3] * s[..., None], self.data[..., 3:]), -1))


class Sim3(LieGroup):
    """Similarities: data [tx ty tz qx qy qz qw s], tangent [tau, phi, sigma]."""

    group_name, manifold_dim, embedded_dim, has_translation, has_scale = "Sim3", 7, 8, True, True


def cat(group_list: Sequence[G], dim: int = 0) -> G:
    """Batches of one group joined along an existing batch dimension; a negative one counts from the last batch dimension."""
    first = group_list[0]
    return type(first)(torch.cat([X.data for X in group_list], _batch_dim(dim, len(first.shape))))


def stack(group_list: Sequence[G], dim: int = 0) -> G:
    """Batches of one group and shape joined along a new batch dimension."""
    first = group_list[0]
    return type(first)(torch.stack([X.data for X in group_list], _batch_dim(dim, len(first.shape) + 1)))


def _linear(x: _Parts, p: Tensor) -> Tensor:
    """s R p."""
    rotated = rotation.rotate(x.r, p)
    return rotated if x.s is None else x.s * rotated


def _joined(parts: _Parts) -> Tensor:
    present = [part for part in parts if part is not None]
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in present))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in present], -1)


def _dimensions(dims: tuple[Any, ...]) -> tuple[int, ...]:
    """(2, 3), ((2, 3),) and ([2, 3],) are all the shape (2, 3)."""
    return tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims


def _batch_dim(dim: int, batch_dims: int) -> int:
    """`dim` from the front, so that the last dimension of `data` is never meant."""
    if not -batch_dims <= dim < batch_dims:
        raise IndexError(f"batch dimension {dim} is out of range for {batch_dims} batch dimensions")
    return dim % batch_dims
