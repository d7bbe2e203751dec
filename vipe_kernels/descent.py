"""A whole bundle adjustment in one compiled call, for problems so small that what Python does around a step costs more than the step.

`bundle.solve` is the definition: the same systems, steps, damping and ends. Here nothing holds the GIL between two steps, so that several
small problems, as the hypotheses of a first window are, can be adjusted side by side.
"""

from __future__ import annotations

import math

import numpy as np

from vipe_kernels import block_cholesky, fused
from vipe_kernels.compiled import compiled, compiled_for_pixels, inside_for_pixels

LEAST_DAMPING, MOST_DAMPING, GIVEN_UP = 1e-8, 1e3, 100.0
"""Bounds of the damping, and beyond which no more is tried at a scale."""
EASED, RAISED = 5.0, 20.0
"""By how much damping is divided after a step, and multiplied after one that was taken back."""
NO_WORSE = 1 + 1e-6
"""Share of the cost up to which a step is kept: rounding is no harm."""


@compiled
def _slots(code):
    """The entries of the parameters that an intrinsic moves: the first, and one past the last."""
    if code == 0:
        return 0, 2
    if code < 3:
        return code + 3, code + 4
    return (8, 9) if code == 3 else (code - 2, code - 1)


@compiled
def _add_priors(codes, priors, params, corner, shared):
    """Adds what is believed of the free intrinsics to their part of a system; returns the cost."""
    cost = 0.0
    for m in range(len(codes)):
        precision, mean = priors[m]
        if precision == 0.0:
            continue
        value = params[_slots(codes[m])[0]]
        gap = mean - (math.log(value) if codes[m] == 0 else value)
        corner[m, m] += precision
        shared[m] += precision * gap
        cost += precision * gap * gap
    return cost


@compiled
def move_intrinsics(codes, shared, params):
    """A step of the intrinsics with these codes (n,), shared (n,), in place; it is shortened where it is long. params (9,)."""
    for m in range(len(codes)):
        limit = 0.2 if codes[m] == 0 else 0.1 * params[0] if codes[m] >= 4 else 0.5 if codes[m] == 3 else 0.1
        step = min(max(shared[m], -limit), limit)
        first, last = _slots(codes[m])
        for slot in range(first, last):
            params[slot] = params[slot] * math.exp(step) if codes[m] == 0 else params[slot] + step


@inside_for_pixels
def _solve(elimination, own, blocks, border, corner, poses, shared, damping, moved, turned):
    """`Reduced.solve`: fills moved (6 N,) and turned (n,). False: no inverse."""
    order, start, rows, reach, column, place, target = elimination
    cameras, n = len(own), len(shared)
    diagonal, added, mean = np.empty(6 * cameras + n), np.empty(6 * cameras + n), 0.0
    for c in range(cameras):
        for i in range(6):
            diagonal[6 * c + i] = blocks[own[c], i, i]
    for m in range(n):
        diagonal[6 * cameras + m] = corner[m, m]
    for i in range(len(diagonal)):
        added[i] = (damping + 1e-9) * max(diagonal[i], 0.0) + 1e-12
        mean += abs(diagonal[i]) / len(diagonal)
    panels = np.zeros(36 * start[-1])
    good, tried = False, 0
    while not good and tried < 2:
        if tried:
            panels[:] = 0.0
            for i in range(len(added)):
                added[i] = 1e-3 * mean + 1e6 * added[i]
        good = block_cholesky.factored(order, start, rows, reach, column, place, target, blocks, added, panels)
        tried += 1
    if not good:
        return False
    right, out = np.empty((6 * cameras, n + 1)), np.empty((6 * cameras, n + 1))
    for c in range(cameras):
        for i in range(6):
            for m in range(n):
                right[6 * c + i, m] = border[c, i, m]
            right[6 * c + i, n] = poses[c, i]
    block_cholesky.solved(order, start, rows, panels, right, out)
    if n:
        left, known = np.empty((n, n)), np.empty(n)
        for m in range(n):
            known[m] = shared[m]
            for k in range(6 * cameras):
                known[m] -= right[k, m] * out[k, n]
            for o in range(n):
                left[m, o] = corner[m, o]
                for k in range(6 * cameras):
                    left[m, o] -= right[k, m] * out[k, o]
            left[m, m] += added[6 * cameras + m]
        turned[:] = np.linalg.solve(left, known)
    for k in range(6 * cameras):
        moved[k] = out[k, n]
        for m in range(n):
            moved[k] -= out[k, m] * turned[m]
    return True


@compiled_for_pixels
def descend(first, edges, points, lens, pattern, elimination, rules, schedule, rotation, translation, depth, params, trace):
    """Minimise as `bundle.solve` does; the state, rotation (K, 3, 3) to params (9,), is replaced by the result.

    first: the first source keyframe. edges: starts (S + 1,), source (E,) from the first, destination (E,), target (E, P, 2), weight
    (E, P). points: uv (K, P, 2), free (K,). lens: code of the model, limit of the view, codes (n,) of the free intrinsics, precision and
    mean of their priors (n, 2). pattern: slots (S, D), table (S, D, D), free keyframes (N,), their own blocks (N,). rules: depth_prior,
    near, rotation_only. schedule: scales, steps, tolerance, damping. Fills trace (most, 2) with scale and cost of the steps taken;
    returns how many, cost and mass; -1 steps: no inverse was found.
    """
    starts, source, destination, target, weight = edges
    uv, free_depth = points
    model, limit, codes, priors = lens
    slots, table, free, own = pattern
    depth_prior, near, rotation_only = rules
    scales, most, tolerance, damping_first = schedule
    sources, count, n, width, size = len(starts) - 1, len(source), len(codes), 6 * slots.shape[1] + len(codes), depth.shape[1]
    cameras, last = len(free), first + len(starts) - 1
    # what a system consists of, twice: where a step begins and where it leads
    rotations, translations = np.empty((2, *rotation.shape)), np.empty((2, *translation.shape))
    depths, lenses = np.empty((2, *depth.shape)), np.empty((2, 9))
    C, w, kept = np.zeros((2, *depth.shape)), np.zeros((2, *depth.shape)), np.empty((2, sources, width, size))
    blocks, border = np.zeros((2, len(elimination[-1]) + 1, 6, 6)), np.zeros((2, cameras + 1, 6, n))
    corner, poses, shared = np.zeros((2, n, n)), np.zeros((2, cameras + 1, 6)), np.zeros((2, n))
    rotations[0], translations[0], depths[0], lenses[0] = rotation, translation, depth, params
    # what both are made with
    R, t, ad = np.empty((count, 3, 3)), np.empty((count, 3)), np.empty((count, 6, 6))
    rays, slope = np.empty((sources, size, 3)), np.empty((sources, size, 2, n))
    Hjj, gj, Hjk = np.empty((count, 6, 6)), np.empty((count, 6)), np.empty((count, 6, n))
    Hkk, gk, matrix, vector = (
        np.empty((sources, n, n)),
        np.empty((sources, n)),
        np.empty((sources, width, width)),
        np.empty((sources, width)),
    )
    totals, out, moves = np.empty((sources, 2)), np.empty((sources, size)), np.zeros((len(rotation), 6))
    moved, turned = np.empty(6 * cameras), np.zeros(n)
    now, all_steps, cost, mass, known = 0, 0, 0.0, 0.0, False
    for stage in range(len(scales)):
        scale2, damping, taken, attempts, begun = scales[stage] * scales[stage], damping_first, 0, 0, False
        while not begun or (taken < most[stage] and attempts < 2 * most[stage]):
            at = 1 - now if begun else now
            if begun:
                attempts += 1
                if not _solve(elimination, own, blocks[now], border[now], corner[now], poses[now], shared[now], damping, moved, turned):
                    return -1, cost, mass
                for c in range(cameras):
                    for i in range(6):
                        moves[free[c], i] = moved[6 * c + i]
                out[:] = 0.0
                fused.substituted(0, sources, first, starts, destination, kept[now], C[now, first:last], moves, turned, out)
                w[at] = w[now]
                w[at, first:last] -= out
                fused.perturb(moves, rotations[now], translations[now], rotations[at], translations[at])
                fused.move_depths(depths[now], w[at], C[now], free_depth, depths[at])
                lenses[at] = lenses[now]
                move_intrinsics(codes, turned, lenses[at])
            fused.relative(rotations[at], translations[at], source, destination, first, rotation_only, R, t, ad)
            if n or not known:
                fused.rays(0, sources, uv[first:last], lenses[at], model, codes, rays, slope)
                known = True
            totals[:], corner[at], shared[at] = 0.0, 0.0, 0.0
            fixed = (starts, R, t, rays, depths[at, first:last])
            if begun and taken + 1 >= most[stage]:
                fused.costs(0, sources, *fixed, target, weight, lenses[at], model, limit, scale2, near, totals)
            else:
                C[at], w[at], blocks[at], border[at], poses[at] = 0.0, 0.0, 0.0, 0.0, 0.0
                Hjj[:], gj[:], Hjk[:], Hkk[:], gk[:], matrix[:], vector[:] = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
                fused.condensed(
                    0, sources, *fixed, free_depth[first:last], target, weight, lenses[at], model, limit, codes, slope, scale2, near,
                    rotation_only, depth_prior, True, kept[at], Hjj, gj, Hjk, Hkk, gk, matrix, vector, C[at, first:last],
                    w[at, first:last], totals,
                )  # fmt: skip
                for s in range(1, sources):
                    Hkk[0] += Hkk[s]
                    gk[0] += gk[s]
                fused.couple(
                    starts, ad, Hjj, gj, Hjk, Hkk[0], gk[0], matrix, vector, slots, table, blocks[at], border[at], corner[at], poses[at],
                    shared[at],
                )  # fmt: skip
                for k in range(len(depth)):
                    for p in range(size):
                        C[at, k, p] = max(C[at, k, p], fused.LEAST_CURVATURE)
            tried, heavy = _add_priors(codes, priors, lenses[at], corner[at], shared[at]), 0.0
            for s in range(sources):
                tried += totals[s, 0]
                heavy += totals[s, 1]
            if not begun:
                begun, cost, mass = True, tried, heavy
            elif tried <= cost * NO_WORSE:
                gain = (cost - tried) / max(cost, 1e-12)
                now, taken, cost, mass, damping = at, taken + 1, tried, heavy, max(damping / EASED, LEAST_DAMPING)
                trace[all_steps, 0], trace[all_steps, 1] = scales[stage], cost
                all_steps += 1
                if gain < tolerance:
                    break
            else:
                damping = min(damping * RAISED, MOST_DAMPING)
                if damping > GIVEN_UP:
                    break
    rotation[:], translation[:], depth[:], params[:] = rotations[now], translations[now], depths[now], lenses[now]
    return all_steps, cost, mass
