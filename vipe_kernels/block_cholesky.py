"""Cholesky factors of symmetric positive definite matrices of 6 x 6 blocks, most of them zero, compiled for the CPU (numba), float64.

What of it depends only on where blocks are, the order of elimination (minimum degree: Rose 1972) and the blocks that fill in, is found
once for all matrices of a pattern. A column of blocks is kept as one panel, so what an earlier column subtracts from it is a product with
a 6 x 6 block over long runs (left-looking; George and Liu 1981, chapter 5). The order of every sum, hence every bit of the result, is
always the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_kernels.compiled import compiled, compiled_for_pixels, inside_for_pixels

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_WORD = 64


@dataclass(frozen=True)
class Elimination:
    """order (N,): which unknown is eliminated at each position. start (N + 1,), rows (T,): positions of the blocks of each column of the
    factor, ascending, its own first. reach (N + 1,), column, place (T - N,): for each position the columns that subtract from it, and which
    of their blocks is in its row. target (B, 2): of each given block the column it is part of, -1 for none, and which block of that."""

    order: I64
    start: I64
    rows: I64
    reach: I64
    column: I64
    place: I64
    target: I64

    @classmethod
    def of(cls, count: int, rows: I64, columns: I64) -> Elimination:
        """For a matrix of count x count blocks that are given at (rows, columns) (B,), those of both halves."""
        neighbours = np.zeros((count, -(-count // _WORD)), np.uint64)
        order = np.empty(count, np.int64)
        _eliminate(rows, columns, neighbours, order)
        position = np.argsort(order)
        start, reach = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
        _count(neighbours, order, position, start, reach)
        filled = np.empty(start[-1], np.int64)
        column, place = np.empty(reach[-1], np.int64), np.empty(reach[-1], np.int64)
        target = np.empty((len(rows), 2), np.int64)
        _fill(neighbours, order, position, start, reach, rows, columns, filled, column, place, target)
        return cls(order, start, filled, reach, column, place, target)

    @property
    def arrays(self) -> tuple[I64, ...]:
        """All of it, for compiled code."""
        return self.order, self.start, self.rows, self.reach, self.column, self.place, self.target

    def factor(self, blocks: F64, added: F64) -> F64 | None:
        """Of the matrix of blocks (B, 6, 6) plus diag(added) (6 N,): panels for `solve`. None: not positive definite."""
        panels = np.zeros(36 * self.start[-1])
        return panels if factor(*self.arrays, blocks, added, panels) else None

    def solve(self, panels: F64, right: F64) -> F64:
        """For right-hand sides (6 N, m)."""
        out = np.empty(right.shape)
        solve(self.order, self.start, self.rows, panels, np.ascontiguousarray(right), out)
        return out


@compiled
def _bits(word):
    """How many bits of 64 are set."""
    one, two, four = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
    word = word - ((word >> np.uint64(1)) & one)
    word = (word & two) + ((word >> np.uint64(2)) & two)
    word = (word + (word >> np.uint64(4))) & four
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _has(neighbours, a, b):
    return (neighbours[a, b // _WORD] >> np.uint64(b % _WORD)) & np.uint64(1) != np.uint64(0)


@compiled
def _eliminate(rows, columns, neighbours, order):
    """Fills order, and neighbours (N, W) with what each unknown is tied to when it is eliminated, as bits."""
    count, words = neighbours.shape
    for k in range(len(rows)):
        a, b = rows[k], columns[k]
        if a != b:
            neighbours[a, b // _WORD] |= np.uint64(1) << np.uint64(b % _WORD)
            neighbours[b, a // _WORD] |= np.uint64(1) << np.uint64(a % _WORD)
    degree = np.zeros(count, np.int64)
    for a in range(count):
        for w in range(words):
            degree[a] += _bits(neighbours[a, w])
    for step in range(count):
        best = -1
        for a in range(count):
            if degree[a] >= 0 and (best < 0 or degree[a] < degree[best]):
                best = a
        order[step], degree[best] = best, -1
        for a in range(count):
            if degree[a] < 0 or not _has(neighbours, best, a):
                continue
            degree[a] = 0
            for w in range(words):
                neighbours[a, w] |= neighbours[best, w]
                if w == a // _WORD:
                    neighbours[a, w] &= ~(np.uint64(1) << np.uint64(a % _WORD))
                if w == best // _WORD:
                    neighbours[a, w] &= ~(np.uint64(1) << np.uint64(best % _WORD))
                degree[a] += _bits(neighbours[a, w])


@compiled
def _count(neighbours, order, position, start, reach):
    """Fills start and reach of `Elimination`. position (N,): of each unknown in the order."""
    count = len(order)
    for p in range(count):
        start[p + 1] = start[p] + 1
        for a in range(count):
            if _has(neighbours, order[p], a):
                start[p + 1] += 1
                reach[position[a] + 1] += 1
    for p in range(count):
        reach[p + 1] += reach[p]


@compiled
def _fill(neighbours, order, position, start, reach, rows, columns, filled, column, place, target):
    """Fills the rest of `Elimination`."""
    count, used = len(order), reach[:-1].copy()
    for p in range(count):
        at = start[p] + 1
        filled[start[p]] = p
        for q in range(p + 1, count):
            if _has(neighbours, order[p], order[q]):
                filled[at] = q
                column[used[q]], place[used[q]] = p, at - start[p]
                used[q] += 1
                at += 1
    for k in range(len(rows)):
        a, b = position[rows[k]], position[columns[k]]
        target[k, 0], target[k, 1] = -1, 0
        if a >= b:
            target[k, 0], target[k, 1] = b, np.searchsorted(filled[start[b] : start[b + 1]], a)


@inside_for_pixels
def _combine(panels, begin, tall, c, length, first, second):
    """What a column subtracts from two columns of numbers, c and the next, of another: the product of its blocks, six runs `tall` apart
    from `begin` on, with rows c and c + 1 of the first of them."""
    one, run = np.uint64(tall), np.uint64(begin)
    f0, f1, f2 = panels[begin + c], panels[begin + tall + c], panels[begin + 2 * tall + c]
    f3, f4, f5 = panels[begin + 3 * tall + c], panels[begin + 4 * tall + c], panels[begin + 5 * tall + c]
    g0, g1, g2 = panels[begin + c + 1], panels[begin + tall + c + 1], panels[begin + 2 * tall + c + 1]
    g3, g4, g5 = panels[begin + 3 * tall + c + 1], panels[begin + 4 * tall + c + 1], panels[begin + 5 * tall + c + 1]
    for k in range(np.uint64(length)):
        at = run + k
        p0, p1, p2 = panels[at], panels[at + one], panels[at + one + one]
        at = at + one + one + one
        p3, p4, p5 = panels[at], panels[at + one], panels[at + one + one]
        first[k] = f0 * p0 + f1 * p1 + f2 * p2 + f3 * p3 + f4 * p4 + f5 * p5
        second[k] = g0 * p0 + g1 * p1 + g2 * p2 + g3 * p3 + g4 * p4 + g5 * p5


def _factor(order, start, rows, reach, column, place, target, blocks, added, panels):
    """Fills panels: of column p six runs over the 6 (start[p + 1] - start[p]) numbers of its blocks. False: not positive definite."""
    count = len(order)
    for k in range(len(target)):
        p, at = target[k]
        if p < 0:
            continue
        first, height = 36 * start[p], 6 * (start[p + 1] - start[p])
        for c in range(6):
            for r in range(6):
                panels[first + c * height + 6 * at + r] = blocks[k, r, c]
    where = np.zeros(count, np.int64)
    update = np.empty((2, 6 * count))
    for p in range(count):
        first, height = 36 * start[p], 6 * (start[p + 1] - start[p])
        for c in range(6):
            panels[first + c * height + c] += added[6 * order[p] + c]
        for t in range(start[p], start[p + 1]):
            where[rows[t]] = t - start[p]
        for u in range(reach[p], reach[p + 1]):
            q, at = column[u], place[u]
            tall, begin = 6 * (start[q + 1] - start[q]), 36 * start[q] + 6 * at
            length = tall - 6 * at
            for c in range(0, 6, 2):
                _combine(panels, begin, tall, c, length, update[0], update[1])
                for t in range(length // 6):
                    into = first + c * height + 6 * where[rows[start[q] + at + t]]
                    for r in range(6):
                        panels[into + r] -= update[0, 6 * t + r]
                        panels[into + height + r] -= update[1, 6 * t + r]
        for c in range(6):
            mine = first + c * height
            for m in range(c):
                factor, run = panels[first + m * height + c], first + m * height
                for k in range(c, height):
                    panels[mine + k] -= factor * panels[run + k]
            pivot = panels[mine + c]
            if not pivot > 0.0:
                return False
            scale = 1.0 / np.sqrt(pivot)
            for k in range(c, height):
                panels[mine + k] *= scale
    return True


factor, factored = compiled_for_pixels(_factor), inside_for_pixels(_factor)
"""By itself, and as part of a caller."""


def _solve(order, start, rows, panels, right, out):
    """Forward and back substitution: out (6 N, m)."""
    count = len(order)
    x, six = np.empty(6 * count), np.empty(6)
    for n in range(right.shape[1]):
        for p in range(count):
            for r in range(6):
                x[6 * p + r] = right[6 * order[p] + r, n]
        began = False
        for p in range(count):
            first, blocks = 36 * start[p], start[p + 1] - start[p]
            for c in range(6):
                began |= x[6 * p + c] != 0.0
            if not began:
                continue
            for c in range(6):
                run = first + 6 * blocks * c
                x[6 * p + c] /= panels[run + c]
                for r in range(c + 1, 6):
                    x[6 * p + r] -= panels[run + r] * x[6 * p + c]
            for t in range(1, blocks):
                row, at = 6 * rows[start[p] + t], first + 6 * t
                for c in range(6):
                    for r in range(6):
                        x[row + r] -= panels[at + 6 * blocks * c + r] * x[6 * p + c]
        for p in range(count - 1, -1, -1):
            first, blocks = 36 * start[p], start[p + 1] - start[p]
            for c in range(6):
                six[c] = x[6 * p + c]
            for t in range(1, blocks):
                row, at = 6 * rows[start[p] + t], first + 6 * t
                for c in range(6):
                    for r in range(6):
                        six[c] -= panels[at + 6 * blocks * c + r] * x[row + r]
            for c in range(5, -1, -1):
                run = first + 6 * blocks * c
                for r in range(c + 1, 6):
                    six[c] -= panels[run + r] * six[r]
                six[c] /= panels[run + c]
            for c in range(6):
                x[6 * p + c] = six[c]
        for p in range(count):
            for r in range(6):
                out[6 * order[p] + r, n] = x[6 * p + r]


solve, solved = compiled_for_pixels(_solve), inside_for_pixels(_solve)
