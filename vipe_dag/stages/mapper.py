"""Building the map of a video: where it begins, how it grows, how lost parts are found again, what is adjusted together.

A map grows along the shots, from keyframes to their neighbours. Where a neighbour does not fit (a cut, a blur, a turn too fast to follow)
the map looks for any keyframe that shows a place it knows, and goes on from there, so one world may span several shots, and a shot that
shows another place begins a world of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from vipe_dag.config import BaPosesConfig
from vipe_dag.stages.intrinsics import measure_parallax
from vipe_dag.stages.launch import launch, rotating, widest_pair
from vipe_dag.stages.mapping import Camera, Evidence, Map, intrinsic_std, joined, pixels_schedule
from vipe_dag.stages.revisits import far_pairs, likeness
from vipe_kernels import bundle, parallel
from vipe_kernels.bundle import Intrinsic, Report

_CAMERA_KEYFRAMES = 8
"""Fewer views than this explain distortion or a shifted centre as well by depth."""

_CAMERA_STEPS = 12
"""Most steps at each scale with more of the camera free: centre, focal length and rotations move together, slowly."""

_UNDERSTATED = 4.0
"""Times that what a camera promises to explain, to first order, is less than it then does at most: 1 to 4 of what explained enough."""

_FEW_POINTS = 256
"""Of each keyframe, that place the cameras of a whole map until the last adjustment: errors of neighbouring points are alike."""

_DEPTH_STEPS = 4
"""Most steps of the depths of all points alone, before all is adjusted together for the last time."""

_HELD_STD = 0.03
"""How far the logarithm of the focal length may drift from the calibration while the map is incomplete."""

_ENOUGH_POINTS = 20
"""A camera that fewer points agree on is chance: six of them fit any picture."""

_DOUBTFUL = 0.6
"""Share of the measurements of a keyframe below which its camera is looked for anew, from no guess. In most videos no keyframe explains
less."""

_HOLDS = 0.5
"""Share of the measurements that the cameras of a first window, or that of a keyframe found again, have to explain."""

_WIDE_STEPS = 2
"""Most steps at each scale that is wider than those of an adjustment: the next one takes over."""

_FITTING = 0.25
"""Of the matched features of a pair, a share that is enough to show that its places meet in the map: where as many are where they are
expected, the others look alike. Where a map drifted apart, all are elsewhere."""

_WIDEST = 64.0
"""No robust kernel is wider, in pixels of a 640-pixel picture."""

_DRIFT = 4.0
"""More than a map drifts from one keyframe to the next, in pixels of a 640-pixel picture: 0.6 to 1.2 where it was seen to. What is farther
from where it is expected, and beyond the reach of the widest kernel, is something else that looks alike."""

_MEET_MATCHES = 30
"""Verified matches from which a keyframe that looks like a known place is tried there."""
_MEET_LIKENESS = 0.3
_MEET_TRIES = 3
"""Pairs, those most alike, whose features are compared for each run of keyframes without a place."""


@dataclass(frozen=True)
class Segment:
    """Keyframes whose cameras share one world, ascending, and whether their motion shows a translation."""

    keyframes: tuple[int, ...]
    parallax: bool


def runs(keyframes: Sequence[int], shot: NDArray[np.int32]) -> list[tuple[int, ...]]:
    """Ascending keyframes divided where they do not follow each other or a new shot begins."""
    found: list[list[int]] = []
    for k in keyframes:
        if found and found[-1][-1] == k - 1 and shot[k] == shot[k - 1]:
            found[-1].append(k)
        else:
            found.append([k])
    return [tuple(run) for run in found]


def both_ways(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Each pair and its reverse."""
    return [ordered for a, b in pairs for ordered in ((a, b), (b, a))]


def best_start(scene: Map, candidates: Sequence[tuple[int, ...]], length: int) -> tuple[tuple[int, ...], float]:
    """The run of at most `length` keyframes with the most parallax, looking at every half length, and its parallax."""
    parts = []
    for run in candidates:
        parts += [run[i : i + length] for i in range(0, max(1, len(run) - length + 1), max(1, length // 2))]
    parallax = [measure_parallax(scene, part) if len(part) > 1 else 0.0 for part in parts]
    best = int(np.argmax(parallax))
    return parts[best], parallax[best]


class Mapper:
    """Builds the map of one video; `scene` holds the result. shot (K,): which uninterrupted shot each keyframe belongs to.

    While the map grows only the focal length moves, held near the calibration: a short window cannot tell distortion from depth. All of
    `intrinsics` are free in the last adjustments, which see everything.
    """

    def __init__(self, scene: Map, config: BaPosesConfig, intrinsics: tuple[Intrinsic, ...], shot: NDArray[np.int32]) -> None:
        self.scene, self.config, self.intrinsics, self.shot = scene, config, intrinsics, shot
        focal = float(np.log(scene.params[0]))
        self.held = tuple(Intrinsic("focal", focal, _HELD_STD) for free in intrinsics if free.name == "focal")
        self.unit = scene.m.unit
        self.lost: list[tuple[int, ...]] = []
        self.likeness: Callable[[], NDArray[np.float32]] = partial(likeness, scene, range(len(shot)))

    def build(self, still: bool, progress: Callable[[], None]) -> list[Segment]:
        """Pose all keyframes; returns the worlds they fall into, by first keyframe, without those of a shot that fit into none of its
        worlds: see `add_lost`. still: nothing moved, each shot has one camera."""
        waiting = set(range(len(self.shot)))
        worlds: list[Segment] = []
        refused: set[int] = set()
        while waiting - refused and not still:
            for keyframes in runs(sorted(waiting), self.shot):
                self.connect_sequence(keyframes)
            start, parallax = best_start(self.scene, runs(sorted(waiting - refused), self.shot), self.config.start_window)
            if len(start) < 2 or parallax < self.config.min_parallax:
                break
            if not worlds and not refused:  # growing leaves a thread idle
                self.likeness = cache(parallel.later(self.likeness))
            begun = self.begin(start)
            if not begun:
                refused |= set(start)
                continue
            world = self.grow(begun, waiting, progress)
            worlds.append(Segment(world, True))
            waiting -= set(world)
            self.scene.edges = {key: edge for key, edge in self.scene.edges.items() if (key[0] in world) == (key[1] in world)}
        for keyframes in runs(sorted(waiting), self.shot):
            if any(self.shot[p] == self.shot[keyframes[0]] for world in worlds for p in world.keyframes):
                self.lost.append(keyframes)
                for k in keyframes:
                    self.scene.detach(k)
            else:
                self.rotations_only(keyframes, still)
                worlds.append(Segment(keyframes, False))
        return sorted(worlds, key=lambda world: world.keyframes)

    def add_lost(self, worlds: Sequence[Segment]) -> list[Segment]:
        """The worlds with the keyframes that were lost in the middle of a shot: each run of them at the camera of the nearest keyframe of
        its shot, in whose world it stays. Nothing is known of them, so they come last, when no adjustment follows."""
        found = list(worlds)
        for keyframes in self.lost:
            shot = self.shot[keyframes[0]]
            _, nearest, n = min((abs(p - keyframes[0]), p, n) for n, w in enumerate(worlds) for p in w.keyframes if self.shot[p] == shot)
            for k in keyframes:
                self.scene.place(k, self.scene.rotation[nearest], self.scene.translation[nearest], self.scene.inverse_depth[nearest].copy())
            found[n] = Segment(tuple(sorted((*found[n].keyframes, *keyframes))), found[n].parallax)
        return sorted(found, key=lambda world: world.keyframes)

    def connect_sequence(self, keyframes: tuple[int, ...]) -> None:
        """Measure each keyframe against its predecessors within `radius`, both ways, all at once: threads wait for each other only here."""
        radius = self.config.radius
        pairs = [(other, k) for at, k in enumerate(keyframes) for other in keyframes[max(0, at - radius) : at]]
        self.scene.connect(both_ways(pairs), through=keyframes)

    def begin(self, start: tuple[int, ...]) -> tuple[int, ...]:
        """Place a window of keyframes; returns those that are tied to others: none, and none is placed, where no cameras explain
        most of what was measured."""
        launch(self.scene, start, widest_pair(self.scene, start), self.config.start_scales, thorough=True)
        part = self.scene.part(start[1:], start[:1])
        weight, distance = part.problem.edges.weight.numpy(), bundle.residuals(part.problem, part.state).numpy()
        agrees = weight * (distance < 2.0 * self.unit)
        begun: tuple[int, ...] = ()
        if agrees.sum() > _HOLDS * weight.sum() and (agrees > 0.05).any(0).sum() >= _ENOUGH_POINTS:
            counts, ties = (agrees > 0.05).sum(1), np.zeros(len(part.keys))
            for ends in (part.problem.edges.source, part.problem.edges.destination):
                np.add.at(ties, ends.numpy(), counts)
            begun = tuple(k for k, tied in zip(part.keys, ties, strict=True) if tied >= _ENOUGH_POINTS)
        for k in set(start) - set(begun):
            self.scene.forget(k)
        return begun

    def grow(self, start: tuple[int, ...], waiting: set[int], progress: Callable[[], None]) -> tuple[int, ...]:
        """Extend a placed window by whatever of `waiting` fits, and adjust it all; returns its keyframes, ascending."""
        posed = list(start)
        misfits: set[int] = set()
        strangers: set[int] = set()
        next_global = 2 * len(posed)
        step = 1
        while True:
            rest = waiting - set(posed)
            k = self.next_to(posed, rest - misfits, step)
            step = -step
            if k is None:
                k = self.next_to(posed, rest - misfits, step)
            if k is not None:
                if not self.attach(k, self.near(k, posed)):
                    misfits.add(k)
                    continue
            else:
                met = self.meet(posed, rest - strangers)
                if met is None:
                    break
                k, known = met
                if not self.relocate(k, known):
                    strangers.add(k)
                    continue
                misfits -= rest  # neighbours of a keyframe that was found again may fit now
            posed.append(k)
            self.local(k, tuple(sorted(posed)), anchor=start[0])
            progress()
            if len(posed) >= next_global:
                self.everything(sorted(posed), self.config.local_scales, 3, self.held, _FEW_POINTS)
                next_global = 2 * len(posed)
        keyframes = tuple(sorted(posed))
        self.everything(keyframes, self.config.global_scales, self.config.global_steps, self.intrinsics, _FEW_POINTS)
        return keyframes

    def next_to(self, posed: Sequence[int], waiting: set[int], step: int) -> int | None:
        """The keyframe that follows (step 1) or precedes (-1) a posed one in its shot, at most one between them left out."""
        for distance in (step, 2 * step):
            found = [k + distance for k in posed if k + distance in waiting and self.shot[k + distance] == self.shot[k]]
            if found:
                return max(found, key=lambda k: step * k)
        return None

    def near(self, k: int, posed: Sequence[int]) -> list[int]:
        """Posed keyframes of the same shot within `radius`, nearest first."""
        close = [p for p in posed if abs(p - k) <= self.config.radius and self.shot[p] == self.shot[k]]
        return sorted(close, key=lambda p: (abs(p - k), p))

    def attach(self, k: int, near: list[int]) -> bool:
        """Measure a keyframe against posed neighbours and pose it from them; False, and nothing is left of it, where it does not fit."""
        chain = tuple(sorted((k, *near)))
        self.scene.connect(both_ways((other, k) for other in near), through=chain)
        return self.fits(k, near, self.config.min_inliers)

    def fits(self, k: int, known: list[int], inliers: float) -> bool:
        """Pose a keyframe from what is measured of it in known ones; False, and it is detached, where fewer than a share agree."""
        found = self.scene.extend(k, known, _DOUBTFUL)
        if found is None or found.inliers < inliers or found.agreeing < _ENOUGH_POINTS:
            self.scene.detach(k)
            return False
        return True

    def meet(self, posed: Sequence[int], waiting: set[int]) -> tuple[int, list[int]] | None:
        """The waiting keyframe that shares most verified features with a posed one, and the posed ones it shares them with."""
        if not waiting:
            return None
        best: tuple[int, int, int] | None = None
        known = np.array(sorted(posed))
        for run in runs(sorted(waiting), self.shot):
            alike = self.likeness()[np.array(run)][:, known]
            for index in np.argsort(-alike, axis=None, kind="stable")[:_MEET_TRIES]:
                row, column = np.unravel_index(index, alike.shape)
                if alike[row, column] < _MEET_LIKENESS:
                    break
                k, p = run[row], int(known[column])
                count = len(self.scene.m.matches(p, k))
                if count >= _MEET_MATCHES and (best is None or count > best[0]):
                    best = (count, k, p)
        if best is None:
            return None
        _, k, p = best
        around = [q for q in sorted(posed, key=lambda q: abs(q - p))[: 2 * self.config.radius] if len(self.scene.m.matches(q, k))]
        return k, around[: self.config.radius]

    def relocate(self, k: int, known: list[int]) -> bool:
        """Pose a keyframe from features it shares with known ones, then measure it against them from there; False where it does not fit."""
        self.scene.detach(k)
        for other in known:
            self.scene.edges[(other, k)] = self.scene.m.matched_edge(other, k)
        if not self.fits(k, known, _HOLDS):
            return False
        for other in known:
            del self.scene.edges[(other, k)]
        self.scene.connect(both_ways((other, k) for other in known))
        return True

    def local(self, k: int, keyframes: tuple[int, ...], anchor: int) -> None:
        """Adjust the keyframes around the newest; those that share edges with them stay fixed."""
        config = self.config
        at = keyframes.index(k)
        free = {x for x in keyframes[max(0, at - config.window + 1) : at + config.window] if x != anchor}
        touching = {a if b in free else b for a, b in self.scene.edges if (a in free) != (b in free)}
        fixed = [x for x in touching if x in self.scene.rotation]
        schedule = pixels_schedule(config.local_scales, (2,) * len(config.local_scales), self.unit)
        self.scene.adjust(sorted(free), fixed, schedule, most=_FEW_POINTS)

    def everything(
        self,
        keyframes: Sequence[int],
        scales: tuple[float, ...],
        steps: int,
        intrinsics: tuple[Intrinsic, ...],
        most: int | None = None,
        wide: tuple[float, ...] = (),
    ) -> Report:
        """Adjust all keyframes given, and the intrinsics, by at most so many points of each; the first keyframe stays where it is. wide:
        scales before the others."""
        most_steps = (_WIDE_STEPS,) * len(wide) + (steps,) * len(scales)
        schedule = pixels_schedule((*wide, *scales), most_steps, self.unit, tolerance=3e-4)
        self.scene.anchor(keyframes)
        report = self.scene.adjust(keyframes[1:], keyframes[:1], schedule, intrinsics, most=most)
        self.scene.rescale(keyframes)
        return report

    def refine_camera(self, segments: Sequence[Segment]) -> tuple[Intrinsic, ...]:
        """Free the principal point, then take up radial distortion, where the longest moving segment shows it; returns what is then free.

        All are confounded with focal length, motion and depth, so each is kept only if it lowers the robust cost by enough and is
        more than three standard deviations from what was assumed. A lens that bends one way and then the other shows itself by k1, k2 and
        k3 together. What promises far less than enough is not tried.
        """
        moving = [s.keyframes for s in segments if s.parallax]
        free, scene, config = self.intrinsics, self.scene, self.config
        keyframes = max(moving, key=len, default=())
        if not free or len(keyframes) < _CAMERA_KEYFRAMES:
            return free
        scales = config.global_scales[-2:]
        camera = Camera.of(scene.m.frames, config)
        wanted = [(camera.centre, scene.model, config.centre_gain)]
        if scene.model != "fisheye":
            wanted += [(lens, "brown", config.distortion_gain) for lens in (camera.radial, camera.radial + camera.higher)]
        cost = self.everything(keyframes, scales, _CAMERA_STEPS, free, _FEW_POINTS).cost
        every = joined(free, *(lot for lot, _, _ in wanted))
        evidence: Evidence | None = None  # of the map as it is
        for lot, model, gain in wanted:
            trial = joined(free, lot)
            if trial == free:
                continue
            evidence = evidence or self._evidence(keyframes, every, scales[-1])
            if _UNDERSTATED * evidence.gain(trial) < gain * cost:
                continue
            before, known = scene.snapshot(), scene.model
            scene.model = model
            found = self.everything(keyframes, scales, _CAMERA_STEPS, trial, _FEW_POINTS).cost
            if found < cost * (1 - gain) and self._moved(keyframes, free, trial[len(free) :], scales[-1]):
                free, cost, evidence = trial, found, None
            else:
                scene.model = known
                scene.restore(before)
        return free

    def _evidence(self, keyframes: Sequence[int], intrinsics: tuple[Intrinsic, ...], scale: float) -> Evidence:
        """What the measurements of adjusted keyframes say of intrinsics."""
        part = self.scene.part(keyframes[1:], keyframes[:1], most=_FEW_POINTS)
        return Evidence.of(self.scene, part, intrinsics, scale * self.unit)

    def _moved(self, keyframes: Sequence[int], free: tuple[Intrinsic, ...], more: tuple[Intrinsic, ...], scale: float) -> bool:
        """Whether any of `more`, found beside the intrinsics that were free, is over three standard deviations from what was assumed."""
        std = intrinsic_std(self.scene, keyframes[1:], keyframes[:1], (*free, *more), scale * self.unit)[len(free) :]
        moved = [abs(float(self.scene.params[bundle.SLOTS[i.name][0]]) - i.prior_mean) for i in more]
        return any(m > 3 * s for m, s in zip(moved, std, strict=True))

    def finish(self, segments: Sequence[Segment], free: tuple[Intrinsic, ...]) -> None:
        """The last adjustment, of all points of every world that moves: the longest with the intrinsics that are free, the others with
        what it found. Points that were left out so far are first brought to where the cameras put them."""
        moving = sorted((s.keyframes for s in segments if s.parallax), key=len, reverse=True)
        scales = self.config.global_scales
        for place, keyframes in enumerate(moving):
            self.scene.adjust((), keyframes, pixels_schedule(scales[-2:-1], (_DEPTH_STEPS,), self.unit))
            parallel.give_back_memory()
            self.everything(keyframes, scales[-1:], _CAMERA_STEPS, () if place else free)

    def rotations_only(self, keyframes: tuple[int, ...], still: bool) -> None:
        """Pose keyframes whose camera turned but did not visibly move; still: it did not turn either."""
        if still or len(keyframes) < 2:
            for k in keyframes:
                self.scene.place(k, np.eye(3), np.zeros(3), np.ones(len(self.scene.m.keyframes[k].uv)))
            return
        rotating(self.scene, keyframes, 0.0)
        schedule = pixels_schedule(self.config.local_scales, (4,) * len(self.config.local_scales), self.unit)
        self.scene.adjust(keyframes[1:], keyframes[:1], schedule, rotation_only=True)

    def close(self, keyframes: tuple[int, ...], progress: Callable[[], None]) -> bool:
        """Look for keyframes far apart in time that see the same place, measure them against each other and adjust; False: none were found.

        Where the map has drifted apart by more than the robust kernel forgives, features that match pull it together first, under a kernel
        that starts as wide as the gap; corners are followed from where their points then are. Places that only look alike, and things that
        moved along, leave gaps as well, so what was pulled is kept only if that explains more.
        """
        config, scene = self.config, self.scene
        alike = self.likeness()[np.ix_(keyframes, keyframes)]
        candidates = sorted(pair for pair in far_pairs(scene, keyframes, alike, config.radius, config.revisits) if pair not in scene.edges)
        matched = parallel.each(lambda pair: len(scene.m.matches(*pair)) > 0, candidates)
        added = both_ways(pair for pair, known in zip(candidates, matched, strict=True) if known)
        progress()
        if not added:
            return False
        gap = self.gap(added)
        if gap > config.global_scales[0]:
            self.pull(keyframes, added, gap)
        scene.connect(added)
        self.everything(keyframes, config.global_scales, config.global_steps, self.intrinsics, _FEW_POINTS)
        return True

    def pull(self, keyframes: tuple[int, ...], pairs: Sequence[tuple[int, int]], gap: float) -> None:
        """Close a gap (px at 640 wide) between keyframes whose features match, if the robust cost of all is then lower than without."""
        config, scene = self.config, self.scene
        halvings = int(np.ceil(np.log2(gap / config.global_scales[0])))
        wide = tuple(config.global_scales[0] * 2.0**n for n in range(halvings, 0, -1))
        scene.edges.update((pair, scene.m.matched_edge(*pair)) for pair in pairs)
        cost = []
        # without, the last scale will do: it was adjusted before
        for first, scales in (((), config.global_scales[-1:]), (wide, config.global_scales)):
            before = scene.snapshot()
            cost.append(self.everything(keyframes, scales, config.global_steps, self.intrinsics, _FEW_POINTS, first).cost)
        if cost[1] > cost[0]:
            scene.restore(before)
        for pair in pairs:
            del scene.edges[pair]

    def gap(self, pairs: Sequence[tuple[int, int]]) -> float:
        """Largest median distance between where the map expects matched features of a pair and where they are, px at 640 wide, among those
        that a mistake of the map explains."""
        largest, scene = 0.0, self.scene
        for a, b in pairs:
            matched = scene.m.matched_edge(a, b)
            expected = scene.predict_pose(a, scene.rotation[b], scene.translation[b], matched.index)
            distance = np.linalg.norm(expected - matched.target, axis=1) / self.unit
            nearest, found = np.quantile(distance, (_FITTING, 0.5))
            if nearest > self.config.global_scales[0] and found < _WIDEST + _DRIFT * abs(b - a):
                largest = max(largest, float(found))
        return min(largest, _WIDEST)
