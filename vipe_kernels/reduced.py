"""The reduced camera system of bundle adjustment: block-sparse over cameras, with a dense border for the shared intrinsics.

    [ P   B ] [ poses      ]   [ g ]
    [ B^T K ] [ intrinsics ] = [ h ]

Two cameras share a block of P only where some keyframe's points were measured in both, so P has a bounded number of blocks per camera
however long the video is. It is factorised in blocks on the CPU (`block_cholesky`); few cameras on a GPU are solved densely there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vipe_kernels.backend import backend_for
from vipe_kernels.block_cholesky import Elimination

DENSE_CAMERAS = 120
"""Up to so many are solved on the GPU where they are."""
_COLUMNS = 64
"""Right-hand sides solved together for a covariance."""


@dataclass(frozen=True)
class Pattern:
    """Where blocks go. cameras: how many are free; rows, columns (B,): cameras of each block, sorted by both.

    Per chunk of source keyframes: slots (S, D): free camera at each place of a source (its own, then its destinations), `cameras` for none;
    tables (S, D, D): block that a pair of places adds to, B for none.
    """

    cameras: int
    rows: Tensor
    columns: Tensor
    slots: list[Tensor]
    tables: list[Tensor]

    @classmethod
    def of(cls, cameras: int, slots: list[Tensor]) -> Pattern:
        """The pattern in which all free cameras that one source touches share blocks, and each has one of its own."""
        keys = []
        for slot in slots:
            a, b = slot.unsqueeze(2), slot.unsqueeze(1)
            keys.append(torch.where((a < cameras) & (b < cameras), a * cameras + b, cameras * cameras))
        none = torch.tensor([cameras * cameras], device=slots[0].device if slots else None)
        own = torch.arange(cameras, device=none.device) * (cameras + 1)
        known, inverse = torch.unique(torch.cat([*[key.ravel() for key in keys], own, none]), return_inverse=True)
        blocks = known[:-1]
        tables, start = [], 0
        for key in keys:
            tables.append(inverse[start : start + key.numel()].view(key.shape))
            start += key.numel()
        return cls(cameras, blocks // max(cameras, 1), blocks % max(cameras, 1), slots, tables)

    @cached_property
    def elimination(self) -> Elimination:
        """How the cameras are eliminated."""
        return Elimination.of(self.cameras, self.rows.cpu().numpy(), self.columns.cpu().numpy())

    @cached_property
    def own(self) -> Tensor:
        """(N,) the block of each camera with itself."""
        return torch.nonzero(self.rows == self.columns).ravel()


@dataclass(frozen=True)
class Covariance:
    """For unit noise: positions (N, 3, 3), of the first three coordinates of each camera; cross (6 N, m), of all coordinates of cameras
    with some directions along which they may move; intrinsics (n, n)."""

    positions: Tensor
    cross: Tensor
    intrinsics: Tensor


class Reduced:
    """The system while it is summed up and when it is solved: blocks (B + 1, 6, 6), border (N + 1, 6, n), corner (n, n), poses (N + 1, 6),
    shared (n,). The last block and camera collect what belongs to fixed ones and are ignored."""

    def __init__(self, pattern: Pattern, intrinsics: int, like: Tensor) -> None:
        self.pattern, self.n = pattern, intrinsics
        count = pattern.cameras + 1
        shapes = ((len(pattern.rows) + 1, 6, 6), (count, 6, intrinsics), (intrinsics, intrinsics), (count, 6), (intrinsics,))
        if backend_for(like) == "compiled":
            zeros = [torch.from_numpy(x) for x in zeros_together(*shapes)]
        else:
            zeros = [like.new_zeros(shape) for shape in shapes]
        self.blocks, self.border, self.corner, self.poses, self.shared = zeros

    def add(self, chunk: int, matrix: Tensor, vector: Tensor) -> None:
        """Add what each source of a chunk says about the cameras it touches and the intrinsics: (S, W, W), (S, W), W = 6 D + n."""
        slots, table = self.pattern.slots[chunk], self.pattern.tables[chunk]
        sources, places = slots.shape
        wide = 6 * places
        pairs = matrix[:, :wide, :wide].reshape(sources, places, 6, places, 6).transpose(2, 3)
        _add_at(self.blocks, table.ravel(), pairs.reshape(-1, 6, 6))
        _add_at(self.poses, slots.ravel(), vector[:, :wide].reshape(-1, 6))
        if self.n:
            _add_at(self.border, slots.ravel(), matrix[:, :wide, wide:].reshape(-1, 6, self.n))
            self.corner += matrix[:, wide:, wide:].sum(0)
            self.shared += vector[:, wide:].sum(0)

    @property
    def size(self) -> int:
        return 6 * self.pattern.cameras + self.n

    def gradient(self) -> Tensor:
        """Right-hand side (6 N + n,)."""
        return torch.cat([self.poses[:-1].ravel(), self.shared])

    def diagonal(self) -> Tensor:
        """(6 N + n,)."""
        poses = self.blocks.diagonal(dim1=1, dim2=2)[self.pattern.own].ravel()
        return torch.cat([poses, self.corner.diagonal()]) if self.n else poses

    def barely(self) -> Tensor:
        """(6 N + n,) to add where nothing is to be damped and an inverse is wanted."""
        return 1e-9 * self.diagonal().abs() + 1e-12

    def dense(self) -> Tensor:
        """The whole matrix (6 N + n, 6 N + n)."""
        cameras = self.pattern.cameras
        poses = self.poses.new_zeros(cameras, cameras, 6, 6)
        poses[self.pattern.rows, self.pattern.columns] = self.blocks[:-1]
        border = self.border[:-1].reshape(6 * cameras, self.n)
        top = torch.cat([poses.transpose(1, 2).reshape(6 * cameras, 6 * cameras), border], 1)
        return torch.cat([top, torch.cat([border.T, self.corner], 1)])

    def solve(self, damping: float) -> Tensor:
        """(matrix + damping diag(matrix))^-1 gradient, (6 N + n,); more is added where rounding left no inverse. Raises LinAlgError where
        that does not help."""
        added = (damping + 1e-9) * self.diagonal().clamp_min(0) + 1e-12
        try:
            return self._solve(added)
        except np.linalg.LinAlgError:
            return self._solve(1e-3 * self.diagonal().abs().mean() + 1e6 * added)

    def _solve(self, added: Tensor) -> Tensor:
        """(matrix + diag(added))^-1 gradient. Raises LinAlgError: not positive definite."""
        if self.pattern.cameras <= DENSE_CAMERAS and backend_for(self.blocks) != "compiled":
            factor, info = torch.linalg.cholesky_ex(self.dense() + torch.diag(added))
            if int(info) != 0:
                raise np.linalg.LinAlgError
            return torch.cholesky_solve(self.gradient().unsqueeze(-1), factor).squeeze(-1)
        count, extra = 6 * self.pattern.cameras, added.cpu().numpy()
        if self.n == 0:
            return torch.from_numpy(self._cameras(extra)(self.poses[:-1].reshape(-1, 1).cpu().numpy()).ravel()).to(self.poses)
        border = self._border()
        solved = self._cameras(extra[:count])(np.column_stack([border, self.poses[:-1].reshape(-1, 1).cpu().numpy()]))
        by_shared, alone = solved[:, :-1], solved[:, -1]
        corner = self.corner.cpu().numpy() + np.diag(extra[count:]) - border.T @ by_shared
        shared = np.linalg.solve(corner, self.shared.cpu().numpy() - border.T @ alone)
        return torch.from_numpy(np.concatenate([alone - by_shared @ shared, shared])).to(self.poses)

    def intrinsic_covariance(self, added: Tensor) -> Tensor:
        """Of the intrinsics (n, n), cameras eliminated. added (6 N + n,): to the diagonal."""
        border = self.border[:-1].reshape(-1, self.n)
        return torch.linalg.inv(self.corner + torch.diag(added[6 * self.pattern.cameras :]) - border.T @ self.cameras_by_intrinsics(added))

    def cameras_by_intrinsics(self, added: Tensor) -> Tensor:
        """P^-1 B (6 N, n): minus how the cameras move with the intrinsics. added (6 N + n,): to the diagonal."""
        solve = self._cameras(added[: 6 * self.pattern.cameras].cpu().numpy())
        return torch.from_numpy(solve(self._border())).to(self.border)

    def covariance(self, gauge: Tensor, added: Tensor, along: Tensor) -> Covariance:
        """Of the unknowns, as the inverse of matrix + diag(added) says, with the coordinate held that moves most along gauge (6 N,), unless
        that is 0: a multiplier for the gauge itself would need pivots, which fill the factors. added (6 N + n,): to the diagonal; along
        (6 N, m)."""
        count = 6 * self.pattern.cameras
        border, moved = self._border(), along.cpu().numpy()
        held, most = added[:count].cpu().numpy().copy(), gauge.abs()
        if bool(most.any()):
            held[int(most.argmax())] += float(self.diagonal()[:count].abs().max())
        solve = self._cameras(held)
        by_shared = solve(border)
        shared = np.linalg.inv(self.corner.cpu().numpy() + np.diag(added[count:].cpu().numpy()) - border.T @ by_shared)
        wanted = (6 * np.arange(self.pattern.cameras)[:, None] + np.arange(3)).ravel()
        blocks = np.empty((len(wanted), 3))
        for first in range(0, len(wanted), _COLUMNS):
            part = wanted[first : first + _COLUMNS]
            unit = np.zeros((count, len(part)))
            unit[part, np.arange(len(part))] = 1.0
            rows = 6 * (part // 6)[:, None] + np.arange(3)
            blocks[first : first + len(part)] = solve(unit)[rows, np.arange(len(part))[:, None]]
        own = by_shared.reshape(self.pattern.cameras, 6, self.n)[:, :3]
        positions = blocks.reshape(-1, 3, 3) + own @ shared @ own.transpose(0, 2, 1)
        cross = solve(moved) + by_shared @ (shared @ (by_shared.T @ moved))
        return Covariance(*(torch.from_numpy(x).to(self.poses) for x in (positions, cross, shared)))

    def _border(self) -> NDArray[np.float64]:
        """B (6 N, n)."""
        found: NDArray[np.float64] = self.border[:-1].reshape(6 * self.pattern.cameras, self.n).cpu().numpy()
        return found

    def _cameras(self, added: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """What solves P + diag(added) for right-hand sides (6 N, m). Raises LinAlgError: not positive definite."""
        elimination = self.pattern.elimination
        panels = elimination.factor(self.blocks.cpu().numpy(), added)
        if panels is None:
            raise np.linalg.LinAlgError("the cameras are not determined")
        return lambda right: elimination.solve(panels, right)


def zeros_together(*shapes: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Arrays of zeros that share one piece of memory: of many small ones each costs more to ask for than to fill."""
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    memory = np.zeros(ends[-1])
    return [memory[end - math.prod(shape) : end].reshape(shape) for shape, end in zip(shapes, ends, strict=True)]


def _add_at(out: Tensor, index: Tensor, rows: Tensor) -> None:
    """out[index] += rows, in the same order every time: on a GPU, `index_add_` adds atomically, where `index_put_` sorts."""
    if out.is_cuda:
        out.index_put_((index,), rows, accumulate=True)
    else:
        out.index_add_(0, index, rows)
