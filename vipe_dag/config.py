"""Every value that changes a result: one frozen model per stage, presets in YAML, overrides, errors that name the valid neighbour.

Anything here is part of the fingerprint of its stage (see vipe_dag.graph). Placement (root of the store, device, concurrency) is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources as package_data
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from vipe_dag.config_words import did_you_mean, expected, in_words, shown
from vipe_dag.documents import read_document
from vipe_dag.errors import ConfigError
from vipe_dag.strict_yaml import parse

Share = Annotated[float, Field(gt=0, le=1)]
FocalShare = Annotated[float, Field(ge=0.1, le=10)]
Pixels = Annotated[float, Field(gt=0, le=100)]


class StageConfig(BaseModel):
    """Base of the stage models: immutable, exact types, no unknown field, no NaN or infinity. A YAML list becomes a tuple."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class FramesConfig(StageConfig):
    """Decoding: working resolution and how pixels are kept."""

    long_side: int = Field(
        640, ge=64, le=8192, description="Longer side of the working resolution in pixels; smaller video is not enlarged."
    )
    profile: Literal["jxl", "reference"] = Field(
        "jxl", description="`jxl` keeps lossless pixels in the store; `reference` keeps none and decodes the source on demand."
    )
    max_pixels: int = Field(2**26, ge=4096, le=2**28, description="A source with more pixels per picture is refused.")
    max_frames: int = Field(1_000_000, ge=2, le=100_000_000, description="A clip with more frames is refused.")
    max_seconds: float = Field(86_400.0, gt=0, le=1e7, description="A clip that spans more seconds is refused.")


class KeyframesConfig(StageConfig):
    """Which frames carry the bundle adjustment, and where a shot ends."""

    side: int = Field(320, ge=64, le=2048, description="Longer side in pixels of the reduced pictures on which motion is measured.")
    motion: float = Field(
        0.04, gt=0.0, le=0.5, description="Median motion since the last keyframe, as a share of the longer side, that makes a new one."
    )
    consistent: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="A keyframe is set when fewer textured pixels than this share still agree forward and backward.",
    )
    at_least: int = Field(
        8, ge=2, le=64, description="Keyframes wanted in each shot: slow ones get a shorter step, down to `min_motion`, to have as many."
    )
    min_motion: float = Field(
        0.0025, gt=0.0, le=0.5, description="Shortest step between the keyframes of a slow shot, as a share of the longer side."
    )


class CameraPriors(StageConfig):
    """What is believed of an unknown camera before it is seen, by calibration and adjustment each for itself."""

    prior_focal: float = Field(
        0.87, gt=0.1, le=10.0, description="Centre of the log-normal prior on the focal length, a share of the longer side."
    )
    prior_std: float = Field(0.3, gt=0.0, le=3.0, description="Standard deviation of the logarithm of the focal length under the prior.")
    prior_centre_std: float = Field(
        0.015,
        ge=0.0,
        le=0.2,
        description="Standard deviation of the principal point about the middle of the picture, a share of the longer side; 0: it is "
        "there. Calibration leaves it there, and counts into the standard deviation of the focal length that it may not be.",
    )
    prior_distortion_std: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="Standard deviation of the radial distortion k1, k2 about zero, and a fifth of that of k3; 0: none is sought.",
    )


class MeasurementsConfig(StageConfig):
    """What is measured between keyframes, by calibration and adjustment each for itself."""

    grid_columns: int = Field(24, ge=8, le=128, description="Corners tracked along the longer side of a keyframe.")
    matches: int = Field(512, ge=0, le=8192, description="SIFT keypoints kept per keyframe.")


class IntrinsicsConfig(MeasurementsConfig, CameraPriors):
    """Self-calibration, when no calibration is given."""

    windows: int = Field(3, ge=1, le=16, description="Windows of keyframes, those with the most parallax, that are adjusted together.")
    window: int = Field(8, ge=2, le=32, description="Keyframes in a window.")
    radius: int = Field(3, ge=1, le=8, description="Keyframes at most this far apart are measured against each other.")
    followed: float = Field(
        0.7,
        ge=0.0,
        le=1.0,
        description="SIFT keypoints are matched only where fewer corners than this share can be followed between neighbours; 1: always.",
    )
    starts: tuple[FocalShare, ...] = Field(
        (0.5, 0.65, 0.85, 1.1, 1.5, 2.2), min_length=1, max_length=16, description="Starting focal lengths, as shares of the longer side."
    )
    lens_gain: float = Field(
        0.1,
        gt=0.0,
        le=1.0,
        description="Radial distortion is taken up here, ahead of the adjustment of all keyframes, only if it lowers the robust cost by at "
        "least this share, or lowers it and halves the standard deviation of the focal length; a fisheye lens instead of it only if that "
        "does as much again.",
    )
    scales: tuple[Pixels, ...] = Field(
        (8.0, 3.0, 1.5, 0.7),
        min_length=1,
        max_length=12,
        description="Scales of the robust kernel in turn, pixels of a 640-pixel picture.",
    )
    min_parallax: float = Field(
        1.5,
        ge=0.0,
        le=100.0,
        description="Windows with less motion beyond rotation are left out if others have more; pixels of a 640-pixel picture.",
    )


class BaPosesConfig(MeasurementsConfig, CameraPriors):
    """Bundle adjustment and the pose of every frame."""

    radius: int = Field(3, ge=1, le=8, description="Each keyframe is measured against this many before it.")
    window: int = Field(7, ge=2, le=64, description="Keyframes that a local adjustment moves.")
    start_window: int = Field(8, ge=2, le=32, description="Keyframes of the window on which a map is started.")
    start_scales: tuple[Pixels, ...] = Field(
        (8.0, 3.0, 1.5, 0.7),
        min_length=1,
        max_length=12,
        description="Scales of the robust kernel at the start, pixels of a 640-pixel picture.",
    )
    local_scales: tuple[Pixels, ...] = Field(
        (2.0, 0.7), min_length=1, max_length=12, description="Scales of the robust kernel in local adjustments."
    )
    global_scales: tuple[Pixels, ...] = Field(
        (2.0, 1.0, 0.7), min_length=1, max_length=12, description="Scales of the robust kernel in global adjustments."
    )
    global_steps: int = Field(4, ge=1, le=200, description="Most Gauss-Newton steps at each scale of a global adjustment.")
    revisits: float = Field(
        2.0,
        ge=0.0,
        le=20.0,
        description="Most edges per keyframe, of which at most 256 count, added between keyframes far apart in time that see one place.",
    )
    revisit_rounds: int = Field(1, ge=0, le=5, description="How often such edges are looked for.")
    min_parallax: float = Field(
        1.0,
        ge=0.0,
        le=100.0,
        description="Motion beyond rotation, in pixels of a 640-pixel picture, below which no translation is claimed.",
    )
    min_inliers: float = Field(
        0.2, ge=0.0, le=1.0, description="Share of measurements that must agree with a frame's pose for it to count as tracked."
    )
    max_depth_std: float = Field(
        0.25, gt=0.0, le=10.0, description="Largest relative standard deviation of an inverse depth that counts as known."
    )
    max_focal_std: float = Field(
        0.01,
        gt=0.0,
        le=3.0,
        description="Largest relative standard deviation of an estimated focal length that is not flagged `focal_uncertain`. Depth, and "
        "motion along the view, are wrong by as much as the focal length is.",
    )
    centre_gain: float = Field(
        0.005,
        ge=0.0,
        le=1.0,
        description="The principal point is freed only if that lowers the robust cost by at least this share, from 8 keyframes on.",
    )
    distortion_gain: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Radial distortion is taken up only if it lowers the robust cost by at least this share, from 8 keyframes on.",
    )


class DenseDepthConfig(StageConfig):
    """Triangulated depth of every frame."""

    parallax: tuple[Share, ...] = Field(
        (0.015, 0.03),
        min_length=1,
        max_length=4,
        description="Median parallax wanted to a neighbour, as a share of the width: one neighbour per entry and side.",
    )
    max_gap: int = Field(30, ge=1, le=200, description="Neighbours are looked for among this many rows on either side.")
    flow_preset: Literal["ultrafast", "fast", "medium", "fine"] = Field("fine", description="Effort of the dense flow to each neighbour.")
    flow_scale: float = Field(0.5, ge=0.25, le=1.0, description="Resolution of flow and triangulation, a share of the working resolution.")
    consistency_px: float = Field(
        1.0, gt=0, le=10, description="Forward-backward error at which a flow vector loses almost two thirds of its weight, in pixels."
    )
    max_residual_px: float = Field(1.5, gt=0, le=20, description="Larger disagreement between neighbours is not a measurement, in pixels.")
    max_relative_std: float = Field(
        0.08, gt=0, le=1, description="Larger standard deviation of inverse depth, relative to it, is not a measurement."
    )


class AlignedDepthConfig(StageConfig):
    """Depth in the scale of the poses, stable over time."""

    model: Literal["scale", "scale_shift"] = Field(
        "scale", description="What brings a row's inverse depth into the scale of the poses: a factor, or a factor and an offset."
    )
    smoothing_rows: int = Field(
        6, ge=0, le=60, description="Rows on either side whose alignment is averaged in, where it agrees within its own uncertainty."
    )
    max_age: float = Field(
        8.0, ge=0, le=100, description="Most past rows (in full confidence) that weigh against a fresh one; 0 switches temporal fusion off."
    )
    agreement: float = Field(
        0.05, gt=0, le=1, description="Relative difference of depth below which the past and a fresh measurement are averaged."
    )
    colour_agreement: float = Field(
        25.0, gt=0, le=255, description="Grey levels by which a pixel may change and still be taken for the same surface as before."
    )


class PipelineConfig(StageConfig):
    """The whole pipeline, one section per stage."""

    frames: FramesConfig = Field(default_factory=FramesConfig, description="Decoding.")
    keyframes: KeyframesConfig = Field(default_factory=KeyframesConfig, description="Keyframes and shots.")
    intrinsics: IntrinsicsConfig = Field(default_factory=IntrinsicsConfig, description="Calibration.")
    ba_poses: BaPosesConfig = Field(default_factory=BaPosesConfig, description="Bundle adjustment and poses.")
    dense_depth: DenseDepthConfig = Field(default_factory=DenseDepthConfig, description="Triangulated depth.")
    aligned_depth: AlignedDepthConfig = Field(default_factory=AlignedDepthConfig, description="Aligned depth.")


PRESET_KEY = "preset"
MAX_PROBLEMS = 10
"""Of a configuration, that are told at once."""
_PRESETS = package_data.files("vipe_dag") / "presets"


def presets() -> tuple[str, ...]:
    """Names of the presets that ship with the package, sorted."""
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml")))


def load_config(preset: str | None = None, overrides: Iterable[str] = (), file: str | Path | None = None) -> PipelineConfig:
    """The configuration of a run: preset, then `file`, then `overrides`, each replacing single values of the one before.

    preset: one of `presets()`; None takes the one that `file` names under its key `preset`, else "default".
    overrides: `stage.field=value`, the value a YAML scalar or list. file: path or fsspec URL of a YAML mapping of stages.
    Raises ConfigError, which names key, value, bounds, origin and the nearest valid name.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if file is not None:
        text = read_document(str(file))
        if text is None:
            raise ConfigError(f"{file}: no such configuration file")
        content = dict(_mapping(text, str(file)))
        named = content.pop(PRESET_KEY, None)
        if named is not None and not isinstance(named, str):
            raise ConfigError(f"{file}: {PRESET_KEY} must be the name of a preset ({', '.join(presets())}), got {shown(named)}")
        preset = preset or named
        layers.append((str(file), content))
    preset = preset or "default"
    layers.insert(0, (f"preset {preset}", _preset(preset)))
    layers.extend(("--set", _override(text)) for text in overrides)
    return _validated(layers)


def field_names() -> tuple[str, ...]:
    """Every `stage.field` that can be set, in the order of the models."""
    return tuple(f"{stage}.{name}" for stage, field in PipelineConfig.model_fields.items() for name in _section(field).model_fields)


def field_info(name: str) -> FieldInfo:
    """The pydantic field behind a name of `field_names()`."""
    stage, _, field = name.partition(".")
    found: FieldInfo = _section(PipelineConfig.model_fields[stage]).model_fields[field]
    return found


def _mapping(text: str, origin: str) -> Mapping[str, Any]:
    content = parse(text, origin)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{origin}: expected a mapping of stages to their fields, found {shown(content)}")
    return content


def _preset(name: str) -> Mapping[str, Any]:
    if name not in presets():
        raise ConfigError(f"unknown preset {shown(name)}{did_you_mean(name, presets())}; there are: {', '.join(presets())}")
    return _mapping((_PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}")


def _override(text: str) -> Mapping[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or key.count(".") != 1:
        wish = did_you_mean(key, field_names()) if key else ""
        raise ConfigError(f"--set {text}: expected stage.field=value{wish}, for example frames.long_side=640")
    stage, field = key.split(".")
    return {stage: {field: parse(value, f"--set {text}")}}


def _validated(layers: list[tuple[str, Mapping[str, Any]]]) -> PipelineConfig:
    merged: dict[str, dict[str, Any]] = {}
    origins: dict[tuple[Any, ...], str] = {}
    for origin, layer in layers:
        for stage, section in layer.items():
            origins[stage,] = origin
            if section is None:
                continue
            if stage not in PipelineConfig.model_fields:
                raise ConfigError(f"{in_words(stage)}: unknown stage ({origin}){did_you_mean(str(stage), PipelineConfig.model_fields)}")
            if not isinstance(section, Mapping):
                raise ConfigError(f"{stage}: expected a mapping of its fields ({origin}), found {shown(section)}")
            named = {str(field): value for field, value in section.items()}  # YAML also takes numbers for keys
            merged.setdefault(stage, {}).update(named)
            origins.update({(stage, field): origin for field in named})
    try:
        return PipelineConfig.model_validate(merged)
    except ValidationError as error:
        problems = {detail["loc"][:2]: _problem(detail, origins, merged) for detail in error.errors(include_url=False)}
        raise ConfigError("; ".join(list(problems.values())[:MAX_PROBLEMS])) from error


def _problem(detail: Any, origins: Mapping[tuple[Any, ...], str], given: Mapping[str, Mapping[str, Any]]) -> str:
    location: tuple[Any, ...] = tuple(detail["loc"][:2])
    key = ".".join(str(part) for part in location)
    origin = origins.get(location, "defaults")
    if detail["type"] == "extra_forbidden":
        return f"{in_words(key)}: unknown field ({origin}){did_you_mean(key, field_names())}"
    if detail["type"] in ("value_error", "assertion_error"):
        return f"{key} ({origin}): {detail['msg'].partition(', ')[2] or detail['msg']}"
    value = given.get(location[0], {}).get(location[-1], detail["input"])
    return f"{key}: expected {expected(field_info(key))}, got {shown(list(value) if isinstance(value, tuple) else value)} ({origin})"


def _section(field: FieldInfo) -> type[BaseModel]:
    section = field.annotation
    assert isinstance(section, type)
    assert issubclass(section, BaseModel)
    return section
