"""Rotations as quaternions [qx qy qz qw]: the formulas under the groups.

Quaternions are normalised where they are read, so rounding does not accumulate over long products. Each function of an angle that has
0/0 at zero is a power series there; both branches are evaluated on safe values, so that autograd stays finite at zero.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_TERMS = range(9)  # at the limit x < 1 the first series term left out is below 1e-18
_COS_HALF = [(-1) ** k / (4**k * math.factorial(2 * k)) for k in _TERMS]
_SIN_HALF = [(-1) ** k / (2 * 4**k * math.factorial(2 * k + 1)) for k in _TERMS]
_CUBIC = [(-1) ** k / math.factorial(2 * k + 3) for k in _TERMS]
_ATAN = [2 * (-1) ** k / (2 * k + 1) for k in range(5)]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def unit(q: Tensor) -> Tensor:
    """The unit quaternion along q (..., 4)."""
    return q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)


def conjugate(q: Tensor) -> Tensor:
    """The inverse (..., 4) of unit quaternions (..., 4)."""
    return torch.cat((-q[..., :3], q[..., 3:]), -1)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product (..., 4): first rotate by b, then by a."""
    ax, ay, az, aw = a.unbind(-1)
    bx, by, bz, bw = b.unbind(-1)
    return torch.stack(
        (
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ),
        -1,
    )


def rotate(q: Tensor, p: Tensor) -> Tensor:
    """Vectors p (..., 3) rotated by unit quaternions q (..., 4), in entries of the matrix: few quaternions serve many points."""
    x, y, z = p.unbind(-1)
    return torch.stack([a * x + b * y + c * z for a, b, c in _matrix_entries(q)], -1)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """a x b (..., 3); batches may differ in their number of dimensions, which torch.linalg.cross refuses."""
    ax, ay, az = a.unbind(-1)
    bx, by, bz = b.unbind(-1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), -1)


def from_matrix(matrix: Tensor) -> Tensor:
    """Unit quaternions (..., 4) of rotation matrices (..., 3, 3), qw >= 0.

    Each of the four quaternion entries can be found from a sum of diagonal entries; the largest is taken (Shepperd 1978).
    """
    m = matrix
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xw, yw, zw = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    # Row i is 4 q_i q; its i-th entry 4 q_i^2 is largest for the best conditioned row.
    rows = (
        (1 + 2 * xx - trace, xy, xz, xw),
        (xy, 1 + 2 * yy - trace, yz, yw),
        (xz, yz, 1 + 2 * zz - trace, zw),
        (xw, yw, zw, 1 + trace),
    )
    candidates = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = torch.gather(candidates, -2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    return unit(torch.where(q[..., 3:] < 0, -q, q))


def exp(phi: Tensor) -> Tensor:
    """Unit quaternions (..., 4) of rotation vectors phi (..., 3), radians."""
    angle2 = _squared(phi)
    cos_half = _stable(angle2, 1.0, _COS_HALF, lambda x: torch.cos(0.5 * x.sqrt()))
    return torch.cat((_sin_half(angle2) * phi, cos_half), -1)


def log(q: Tensor) -> Tensor:
    """Rotation vectors (..., 3) of at most pi radians of unit quaternions (..., 4); q and -q give the same.

    2 atan2(|v|, w) / |v| times v, as in Hertzberg et al., Information Fusion 2011; a series in |v| / w near zero.
    """
    q = torch.where(q[..., 3:] < 0, -q, q)
    v, w = q[..., :3], q[..., 3:]
    v2 = _squared(v)
    small = v2 < 1e-4
    w_safe = torch.where(small, w, 1.0)
    v_safe = torch.where(small, 1.0, v2).sqrt()
    near = _polynomial(torch.where(small, v2, 0.0) / (w_safe * w_safe), _ATAN) / w_safe
    far = 2 * torch.atan2(v_safe, torch.where(small, 1.0, w)) / v_safe
    return torch.where(small, near, far) * v


class Swirl:
    """W(phi, sigma), the integral over s in [0, 1] of exp(s (sigma I + [phi]x)): the map from tau to a translation, and its inverse.

    Without sigma this is the left Jacobian of SO3. W = A [phi]x + B [phi]x^2 + C I, with A, B, C functions of |phi|^2 and sigma.
    Closed forms of A and B with sigma lose all digits where |phi| or sigma is small; their integrands have one sign, so 16-point
    Gauss-Legendre quadrature is exact to rounding for |phi| <= pi and |sigma| <= 10, zero included.
    """

    def __init__(self, phi: Tensor, sigma: Tensor | None = None) -> None:
        self.phi = phi
        self.angle2 = _squared(phi)
        self.A: Tensor
        self.B: Tensor
        self.C: Tensor
        if sigma is None:
            self.A = 2 * _sin_half(self.angle2) ** 2
            self.B = _stable(self.angle2, 1.0, _CUBIC, lambda x: (x.sqrt() - torch.sin(x.sqrt())) / (x * x.sqrt()))
            self.C = torch.ones_like(self.A)
        else:
            s = phi.new_tensor(0.5 * (_NODES + 1))
            weight = phi.new_tensor(0.5 * _WEIGHTS) * torch.exp(sigma * s)
            self.A = (weight * s * 2 * _sin_half(4 * self.angle2 * s * s)).sum(-1, keepdim=True)
            self.B = (weight * s * s * 2 * _sin_half(self.angle2 * s * s) ** 2).sum(-1, keepdim=True)
            self.C = weight.sum(-1, keepdim=True)

    def times(self, tau: Tensor) -> Tensor:
        """W tau (..., 3)."""
        return self._combine(self.A, self.B, self.C, tau)

    def solve(self, t: Tensor) -> Tensor:
        """W^-1 t (..., 3). Across the axis W is multiplication by the complex number alpha + i beta, along it by C."""
        alpha = self.C - self.B * self.angle2
        modulus2 = alpha * alpha + self.A * self.A * self.angle2
        return self._combine(-self.A / modulus2, (self.A * self.A - alpha * self.B) / (self.C * modulus2), 1 / self.C, t)

    def _combine(self, a: Tensor, b: Tensor, c: Tensor, v: Tensor) -> Tensor:
        once = cross(self.phi, v)
        return c * v + a * once + b * cross(self.phi, once)


def _matrix_entries(q: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    x, y, z, w = q.unbind(-1)
    x2, y2, z2 = 2 * x, 2 * y, 2 * z
    return (
        (1 - y2 * y - z2 * z, x2 * y - z2 * w, x2 * z + y2 * w),
        (x2 * y + z2 * w, 1 - x2 * x - z2 * z, y2 * z - x2 * w),
        (x2 * z - y2 * w, y2 * z + x2 * w, 1 - x2 * x - y2 * y),
    )


def _squared(v: Tensor) -> Tensor:
    return (v * v).sum(-1, keepdim=True)


def _sin_half(angle2: Tensor) -> Tensor:
    """sin(angle / 2) / angle from the squared angle. Twice its square is (1 - cos angle) / angle^2."""
    return _stable(angle2, 1.0, _SIN_HALF, lambda x: torch.sin(0.5 * x.sqrt()) / x.sqrt())


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def _stable(x: Tensor, limit: float, series: Sequence[float], closed: Callable[[Tensor], Tensor]) -> Tensor:
    """The power series below `limit`, the closed form from there on."""
    small = x < limit
    return torch.where(small, _polynomial(torch.where(small, x, 0.0), series), closed(torch.where(small, limit, x)))
