"""Bundle adjustment written to be read: one residual function, Jacobians by automatic differentiation, dense normal equations, float64.

The oracle of `vipe_kernels.bundle`. It shares only the camera models with it, which have tests of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vipe_kernels import cameras
from vipe_kernels.bundle import Problem, State

_SLOTS = {"focal": [0, 1], "cx": [2], "cy": [3], "k1": [4], "k2": [5], "k3": [8]}


def _hat(xi: Tensor) -> Tensor:
    """4x4 generators of [tau, phi] (6,)."""
    x, y, z = xi[3:]
    zero = torch.zeros_like(x)
    top = torch.stack([zero, -z, y, xi[0], z, zero, -x, xi[1], -y, x, zero, xi[2]]).view(3, 4)
    return torch.cat([top, torch.zeros(1, 4, dtype=xi.dtype)])


def moved(problem: Problem, state: State, change: Tensor) -> State:
    """The state after `change` = [6 per keyframe, inverse depths, intrinsics], everything as if it were free."""
    keyframes, points = problem.uv.shape[:2]
    pose = change[: 6 * keyframes].view(keyframes, 6)
    depth = change[6 * keyframes :][: keyframes * points].view(keyframes, points)
    world2cam = [torch.matrix_exp(_hat(xi)) @ _matrix(r, t) for xi, r, t in zip(pose, state.rotation, state.translation, strict=True)]
    params = state.params
    for free, value in zip(problem.intrinsics, change[6 * keyframes + keyframes * points :], strict=True):
        here = torch.zeros(9, dtype=params.dtype)
        here[_SLOTS[free.name]] = 1.0
        params = params * torch.exp(here * value) if free.name == "focal" else params + here * value
    poses = torch.stack(world2cam)
    return State(poses[:, :3, :3], poses[:, :3, 3], state.inverse_depth + depth, params)


def _matrix(r: Tensor, t: Tensor) -> Tensor:
    return torch.cat([torch.cat([r, t[:, None]], 1), torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=r.dtype)])


def predict_edge(problem: Problem, state: State, edge: int) -> Tensor:
    """Where the points of one edge should appear, (P, 2): unproject, move from camera to world to camera, project."""
    i, j = int(problem.edges.source[edge]), int(problem.edges.destination[edge])
    ray = cameras.unproject(problem.uv[i], state.params, problem.model)
    world = (ray / state.inverse_depth[i, :, None] - state.translation[i]) @ state.rotation[i]
    return cameras.project(world @ state.rotation[j].T + state.translation[j], state.params, problem.model)


def predict(problem: Problem, state: State) -> Tensor:
    """The same for all edges, (E, P, 2)."""
    return torch.stack([predict_edge(problem, state, edge) for edge in range(len(problem.edges.source))])


def jacobian(problem: Problem, state: State) -> Tensor:
    """d predict / d change, (E * P * 2, entries of a change)."""
    start = torch.zeros(len(free_columns(problem)), dtype=torch.float64)
    rows = [
        torch.autograd.functional.jacobian(lambda change, e=edge: predict_edge(problem, moved(problem, state, change), e).ravel(), start)
        for edge in range(len(problem.edges.source))
    ]
    return torch.cat(rows)


def cost(problem: Problem, state: State, scale: float) -> float:
    """Sum of w rho(distance) with Geman-McClure's rho at this scale, plus the priors on the intrinsics."""
    squared = (problem.edges.target - predict(problem, state)).square().sum(-1)
    total = (problem.edges.weight * squared * scale**2 / (scale**2 + squared)).sum()
    for free in problem.intrinsics:
        total = total + ((_value(free.name, state.params) - free.prior_mean) / free.prior_std) ** 2
    return float(total)


def _value(name: str, params: Tensor) -> Tensor:
    return torch.log(params[0]) if name == "focal" else params[_SLOTS[name][0]]


def free_columns(problem: Problem) -> Tensor:
    """Which entries of a change may be different from zero, bool."""
    pose = problem.free_pose[:, None].expand(-1, 6).clone()
    if problem.rotation_only:
        pose[:, :3] = False
    depth = problem.free_depth[:, None].expand(problem.uv.shape[:2])
    return torch.cat([pose.ravel(), depth.ravel(), torch.ones(len(problem.intrinsics), dtype=torch.bool)])


def normal_equations(problem: Problem, state: State, scale: float) -> tuple[Tensor, Tensor]:
    """Hessian and right-hand side of the reweighted least squares over the free entries of a change."""
    start = torch.zeros(len(free_columns(problem)), dtype=torch.float64)
    J = jacobian(problem, state)
    error = problem.edges.target - predict(problem, state)
    shape = scale**2 / (scale**2 + error.square().sum(-1))
    weight = (problem.edges.weight * shape**2)[..., None].expand_as(error).ravel()
    H = J.T @ (weight[:, None] * J)
    g = J.T @ (weight * error.ravel())
    stiff = torch.zeros_like(start)
    poses = 6 * len(problem.uv)
    stiff[poses : poses + state.inverse_depth.numel()] = problem.depth_prior / state.inverse_depth.ravel().square()
    for position, free in enumerate(problem.intrinsics):
        row = len(start) - len(problem.intrinsics) + position
        stiff[row] = 1 / free.prior_std**2
        g[row] += (free.prior_mean - _value(free.name, state.params)) / free.prior_std**2
    H = H + torch.diag(stiff)
    free = free_columns(problem)
    return H[free][:, free], g[free]


def gauss_newton(problem: Problem, state: State, scale: float) -> State:
    """The state after one undamped step."""
    H, g = normal_equations(problem, state, scale)
    change = torch.zeros(len(free_columns(problem)), dtype=torch.float64)
    change[free_columns(problem)] = torch.linalg.solve(H, g)
    return moved(problem, state, change)
