"""Self-calibration: the focal length, and the distortion of a lens that shows one, under which short windows of the video are rigid.

Windows of keyframes with the most parallax are bundle-adjusted together, sharing one camera, from several starting focal lengths; different
starts end in different basins and the robust cost tells them apart. A log-normal prior on the focal length holds it where the motion does
not show it, and the reported standard deviation then says so. A given calibration is used exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipe_dag.calibration import Calibration
from vipe_dag.config import IntrinsicsConfig
from vipe_dag.results import Intrinsics, Keyframes
from vipe_dag.sequence import FrameSequence
from vipe_dag.stages.finds import Finds
from vipe_dag.stages.launch import launch, widest_pair
from vipe_dag.stages.mapping import Camera, Evidence, Map, pixels_schedule
from vipe_dag.stages.measurements import Measurements
from vipe_kernels import parallel
from vipe_kernels.bundle import SLOTS, Intrinsic
from vipe_kernels.parallel import our_threads
from vipe_kernels.tracking import spread

Float = NDArray[np.float64]

OBSERVABLE_STD = 0.15
"""Posterior standard deviation of the log focal length below which the motion, not the prior, decided."""

_PROMISING = 0.002
"""Share of the robust cost that a first step has to promise before distortion is tried: where a lens bends most measurements are outliers
to a pinhole, so the whole gain is several times the promise. Of straight lenses it is 0.002 and less, unless the camera only turns."""

_LOOSE, _TIGHTER = 0.1, 0.6
"""Standard deviation of the log focal length of a pinhole above which a lens is tried whatever is promised; and the share of it that a lens
has to leave to be taken for that alone: those that are there leave 0.1 to 0.58, those that are not 0.7 and more."""

_SHORTER = (0.0, 2.0)
"""Standard deviations of the prior that the starts of a lens are shorter than its middle: lenses that bend are wide."""

_TRIED = 8
"""Pairs of keyframes by which is told how well corners can be followed."""

_FEW_POINTS = 160
"""Of each keyframe, by which starts are told apart."""

_SAME = 0.01
"""Difference of the logarithms of focal lengths up to which two starts have come to the same."""


@dataclass(frozen=True)
class Window:
    """Consecutive keyframes measured against each other: positions in Measurements, and the parallax in pixels of a 640-pixel picture."""

    keyframes: tuple[int, ...]
    parallax: float


def default_params(width: int, height: int, focal: float) -> Float:
    """A pinhole camera (9,) of this focal length in pixels, with the principal point in the middle."""
    return np.array([focal, focal, (width - 1) / 2, (height - 1) / 2, 0, 0, 0, 0, 0], np.float64)


def neighbours(count: int, radius: int) -> list[tuple[int, int]]:
    """Ordered pairs (i, j), i != j, at most `radius` apart, of `count` consecutive keyframes."""
    return [(i, j) for i in range(count) for j in range(max(0, i - radius), min(count, i + radius + 1)) if i != j]


def window_starts(segment: NDArray[np.int32], length: int, at_most: int) -> list[range]:
    """Evenly spread runs of at most `length` keyframes that stay within one segment (segment: of each keyframe)."""
    runs: list[range] = []
    for value in np.unique(segment):
        inside = np.nonzero(segment == value)[0]
        first, last = int(inside[0]), int(inside[-1]) + 1
        if last - first < 2:
            continue
        runs += [range(start, min(start + length, last)) for start in range(first, max(first + 1, last - length // 2), max(1, length // 2))]
    if not runs:
        return []
    return [runs[i] for i in np.unique(np.linspace(0, len(runs) - 1, min(at_most, len(runs))).round().astype(int))]


def measure_parallax(scene: Map, window: Sequence[int]) -> float:
    """Median motion that no rotation explains, between keyframes of a window two apart (one where there are only two), px at 640 wide."""
    step = 2 if len(window) > 2 else 1
    seen = []
    for a, b in zip(window[:-step], window[step:], strict=True):
        if scene.edges[(a, b)].kept > 0.1:
            seen.append(scene.rotation_residual(a, b))
    return float(np.median(seen)) / scene.m.unit if seen else 0.0


def windows_of(measurements: Measurements, keyframes: Keyframes, config: IntrinsicsConfig, scene: Map, at_most: int) -> list[Window]:
    """The windows with the most parallax, best first. Adds their keyframes to the measurements and their sequential edges to the map."""
    candidates = window_starts(keyframes.segment[keyframes.keyframe], config.window, 2 * at_most)
    wanted = list(dict.fromkeys(index for candidate in candidates for index in candidate))
    position = dict(zip(wanted, measurements.add([int(keyframes.keyframe[index]) for index in wanted]), strict=True))
    found = []
    for candidate in candidates:
        local = [position[index] for index in candidate]
        scene.connect([pair for step in (1, 2) for pair in zip(local[:-step], local[step:], strict=True)], through=local)
        found.append(Window(tuple(local), measure_parallax(scene, local)))
    found.sort(key=lambda window: -window.parallax)
    chosen: list[Window] = []
    for window in found:
        if len(chosen) < at_most and not any(set(window.keyframes) & set(other.keyframes) for other in chosen):
            chosen.append(window)
    return chosen


def followed(frames: FrameSequence, keyframes: Keyframes, config: IntrinsicsConfig, finds: Finds) -> float:
    """Median share of corners that can be followed from a keyframe to the next of its shot, of a few; 0 where there is none."""
    shot = keyframes.segment[keyframes.keyframe]
    starts = spread(np.flatnonzero(shot[1:] == shot[:-1]), _TRIED)
    measurements = Measurements(frames, config.grid_columns, 0, keyframes.followed(), finds)
    ends = np.unique([starts, starts + 1])
    position = dict(zip(ends.tolist(), measurements.add([int(keyframes.keyframe[k]) for k in ends]), strict=True))
    scene = Map(measurements, "pinhole", default_params(frames.width, frames.height, 1.0))
    scene.connect((position[k], position[k + 1]) for k in starts.tolist())
    return float(np.median([edge.kept for edge in scene.edges.values()])) if scene.edges else 0.0


def measure(frames: FrameSequence, keyframes: Keyframes, config: IntrinsicsConfig, params: Float, finds: Finds) -> tuple[Map, list[Window]]:
    """A map without cameras but with the measurements of the windows with the most parallax, and these.

    Corners followed by flow are enough for a focal length where most can be followed; features, which cost half of the time, are looked
    for and matched only where fewer are, as where a camera drives: flow is wrong of what passes close by.
    """
    enough = config.matches == 0 or followed(frames, keyframes, config, finds) >= config.followed
    measurements = Measurements(frames, config.grid_columns, 0 if enough else config.matches, keyframes.followed(), finds)
    scene = Map(measurements, "pinhole", params)
    chosen = windows_of(scene.m, keyframes, config, scene, config.windows)
    useful = [w for w in chosen if w.parallax > config.min_parallax] or chosen[:1]
    for window in useful:
        pairs = [(window.keyframes[i], window.keyframes[j]) for i, j in neighbours(len(window.keyframes), config.radius)]
        scene.connect(pairs, through=window.keyframes)
    return scene, useful


@our_threads()
def calibrate(
    frames: FrameSequence,
    keyframes: Keyframes,
    config: IntrinsicsConfig,
    given: Calibration | None = None,
    progress: Callable[[int], None] | None = None,
    finds: Finds | None = None,
) -> Intrinsics:
    """Estimate the camera, or take it as given.

    finds: filled with what is found in the pictures, for `ba_poses.solve`.
    given: calibration at any resolution; scaled to the frames and returned with zero standard deviation. Otherwise a camera with the
    principal point in the middle, a pinhole unless the windows clearly show a lens (`choose_lens`). Flags `focal_unobservable` when the
    prior decided.
    """
    tell = progress or (lambda _start: None)
    nothing = np.zeros(0)
    if given is not None:
        scaled = given.scaled(frames.width, frames.height)
        return Intrinsics(scaled.camera_model, np.asarray(scaled.params, np.float64), np.zeros(9), "given", nothing, nothing, True, ())
    side = max(frames.width, frames.height)
    camera = Camera.of(frames, config)
    params = default_params(frames.width, frames.height, config.prior_focal * side)
    believed = params_std(params, camera.everything(), np.array([intrinsic.prior_std for intrinsic in camera.everything()]))
    unseen = Intrinsics("pinhole", params, believed, "estimated", nothing, nothing, False, ("focal_unobservable",))
    if "static" in keyframes.flags:
        return unseen
    scene, useful = measure(frames, keyframes, config, params, finds or Finds())
    if not useful:
        return unseen
    free = [k for window in useful for k in window.keyframes[1:]]
    fixed = [window.keyframes[0] for window in useful]
    schedule = pixels_schedule(config.scales, (6,) * len(config.scales), scene.m.unit)
    half = (len(config.scales) + 1) // 2
    pairs = [widest_pair(scene, window.keyframes) for window in useful]  # under any focal length, nearly

    def begin(start: float) -> tuple[float, Map]:
        trial = scene.trial("pinhole", default_params(frames.width, frames.height, start * side))
        first = useful[0].keyframes
        launch(trial, first, pairs[0], config.scales[:half], thorough=False, most=_FEW_POINTS)
        fine = pixels_schedule(config.scales[-half:], (6,) * half, scene.m.unit)
        return trial.adjust(first[1:], first[:1], fine, (camera.focal,), most=_FEW_POINTS).cost, trial

    def finish(trial: Map, placed: int, model: str, intrinsics: tuple[Intrinsic, ...]) -> float:
        for window, pair in zip(useful[placed:], pairs[placed:], strict=True):
            launch(trial, window.keyframes, pair, config.scales, thorough=False, most=_FEW_POINTS)
        trial.model = model
        return trial.adjust(free, fixed, schedule, intrinsics, most=_FEW_POINTS).cost

    def bend(focal: float) -> tuple[float, Map]:
        trial = scene.trial("pinhole", default_params(frames.width, frames.height, focal))
        return finish(trial, 0, "brown", camera.lens()), trial

    # The window with the most parallax tells starts apart well enough to drop the worse half, and those that have come to the same focal
    # length as a better one, before all windows are adjusted together.
    begun = sorted(parallel.each(begin, config.starts), key=lambda found: found[0])
    tell(len(begun) // 2)
    trials = unlike([trial for _, trial in begun[: (len(begun) + 1) // 2]])
    cost = parallel.each(lambda trial: finish(trial, 1, "pinhole", (camera.focal,)), trials)
    tell(len(begun) - 1)
    focal = [float(trial.params[0]) for trial in trials]
    best = trials[int(np.argmin(cost))]
    solved = Solved.of(best, free, fixed, (camera.focal,), camera, config)
    if camera.radial:
        solved = choose_lens(solved, bend, free, fixed, camera, config)
    best = solved.scene
    std = params_std(best.params, camera.everything(), solved.std)
    observable = bool(std[0] < OBSERVABLE_STD * best.params[0])
    return Intrinsics(
        best.model,
        best.params,
        std,
        "estimated",
        np.array(focal),
        np.array(cost),
        observable,
        () if observable else ("focal_unobservable",),
    )


def unlike(trials: Sequence[Map]) -> list[Map]:
    """The first of them, and those whose focal length is not that of one before."""
    kept: list[Map] = []
    for trial in trials:
        if all(abs(np.log(trial.params[0] / other.params[0])) > _SAME for other in kept):
            kept.append(trial)
    return kept


@dataclass(frozen=True)
class Solved:
    """A map of the windows solved under one model of the camera: robust cost, what it says of a whole camera, and the standard deviations
    (n,) of that, the log focal length first."""

    scene: Map
    cost: float
    evidence: Evidence
    std: Float

    @classmethod
    def of(
        cls,
        scene: Map,
        free: Sequence[int],
        fixed: Sequence[int],
        intrinsics: tuple[Intrinsic, ...],
        camera: Camera,
        config: IntrinsicsConfig,
    ) -> Solved:
        """Adjust a map that is nearly right by all its points; `intrinsics` are free."""
        last = pixels_schedule(config.scales[-1:], (10,), scene.m.unit, tolerance=1e-5)
        cost = scene.adjust(free, fixed, last, intrinsics).cost
        evidence = Evidence.of(scene, scene.part(free, fixed), camera.everything(), config.scales[-1] * scene.m.unit)
        return cls(scene, cost, evidence, evidence.std())

    def beats(self, other: Solved, gain: float) -> bool:
        """Whether this explains more by a share `gain` of the cost, or more at all and leaves the focal length much less open: a lens that
        is not there leaves it as open as it was."""
        return self.cost < (1 - gain) * other.cost or (self.cost < other.cost and bool(self.std[0] < _TIGHTER * other.std[0]))


def choose_lens(
    pinhole: Solved,
    bend: Callable[[float], tuple[float, Map]],
    free: Sequence[int],
    fixed: Sequence[int],
    camera: Camera,
    config: IntrinsicsConfig,
) -> Solved:
    """What the windows say of the lens, where a pinhole leaves something open: the pinhole, a lens with radial distortion by Brown's
    polynomial, or a fisheye lens in its place.

    What a lens bends, a pinhole takes for another focal length, often far too long, and from there no small step leads back: Brown's model
    starts anew, from the focal length believed before and from a shorter one. A wide lens is first made as even as that can, then as its
    angles are: the focal length is that of the middle of the picture in both. bend: solves for Brown's model from a focal length; its cost
    and map.
    """
    if pinhole.evidence.gain(camera.lens()) < _PROMISING * pinhole.cost and pinhole.std[0] < _LOOSE:
        return pinhole
    starts = [float(np.exp(camera.focal.prior_mean - shorter * camera.focal.prior_std)) for shorter in _SHORTER]
    bent = min(parallel.each(bend, starts), key=lambda found: found[0])[1]
    brown = Solved.of(bent, free, fixed, camera.lens(), camera, config)
    if not brown.beats(pinhole, config.lens_gain):
        return pinhole
    even = bent.trial("fisheye", bent.params)
    even.restore(bent.snapshot())
    even.params[4:] = 0.0
    scales = config.scales[1:] or config.scales
    even.adjust(free, fixed, pixels_schedule(scales, (10,) * len(scales), even.m.unit, tolerance=1e-4), camera.lens())
    fisheye = Solved.of(even, free, fixed, camera.lens(), camera, config)
    return fisheye if fisheye.beats(brown, config.lens_gain) else brown


def params_std(params: Float, intrinsics: Sequence[Intrinsic], std: Float) -> Float:
    """Standard deviations (9,) from those of intrinsics (n,); 0 for what is taken as given."""
    found = np.zeros(9)
    for intrinsic, deviation in zip(intrinsics, std, strict=True):
        slots = list(SLOTS[intrinsic.name])
        found[slots] = params[slots] * deviation if intrinsic.name == "focal" else deviation
    return found
