"""Lie groups of rigid motion on batches: SO3, RxSO3, SE3, Sim3, with the API of princeton-vl's lietorch.

| group | `data` (..., n)              | tangent (..., m)   | acts on a point p as |
|-------|------------------------------|--------------------|----------------------|
| SO3   | [qx qy qz qw]                | [phi]              | R p                  |
| RxSO3 | [qx qy qz qw s]              | [phi, sigma]       | s R p                |
| SE3   | [tx ty tz qx qy qz qw]       | [tau, phi]         | R p + t              |
| Sim3  | [tx ty tz qx qy qz qw s]     | [tau, phi, sigma]  | s R p + t            |

phi is an axis times an angle in radians, s = exp(sigma) > 0. Perturbations are on the left: `X.retr(a)` is Exp(a) X.

Everything is plain torch: any device, differentiable. On CUDA tensors that need no gradient the group operations run in the real lietorch
when that is installed; see `backend_for` and `real_lietorch`.
"""

from vipe_kernels.lie.groups import SE3, SO3, LieGroup, RxSO3, Sim3, cat, stack
from vipe_kernels.lie.native import backend_for, real_lietorch

__all__ = ["SE3", "SO3", "LieGroup", "RxSO3", "Sim3", "backend_for", "cat", "real_lietorch", "stack"]
