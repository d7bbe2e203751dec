"""Every value that changes a result: one frozen model per stage, presets in YAML, overrides, errors that name the valid neighbour.

Anything here is part of the fingerprint of its stage (see vipe_dag.graph). Placement (root of the store, device, concurrency) is not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources as package_data
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from vipe_dag.config_words import did_you_mean, expected
from vipe_dag.errors import ConfigError
from vipe_dag.strict_yaml import parse


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


class KeyframesConfig(StageConfig):
    """Which frames carry the bundle adjustment, and where a shot ends."""


class IntrinsicsConfig(StageConfig):
    """Self-calibration, when no calibration is given."""


class BaPosesConfig(StageConfig):
    """Bundle adjustment and the pose of every frame."""


class DenseDepthConfig(StageConfig):
    """Triangulated depth of every frame."""


class AlignedDepthConfig(StageConfig):
    """Depth in the scale of the poses, stable over time."""


class PipelineConfig(StageConfig):
    """The whole pipeline, one section per stage."""

    frames: FramesConfig = Field(default_factory=FramesConfig, description="Decoding.")
    keyframes: KeyframesConfig = Field(default_factory=KeyframesConfig, description="Keyframes and shots.")
    intrinsics: IntrinsicsConfig = Field(default_factory=IntrinsicsConfig, description="Calibration.")
    ba_poses: BaPosesConfig = Field(default_factory=BaPosesConfig, description="Bundle adjustment and poses.")
    dense_depth: DenseDepthConfig = Field(default_factory=DenseDepthConfig, description="Triangulated depth.")
    aligned_depth: AlignedDepthConfig = Field(default_factory=AlignedDepthConfig, description="Aligned depth.")


PRESET_KEY = "preset"
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
        content = dict(_mapping(_read(file), str(file)))
        named = content.pop(PRESET_KEY, None)
        if named is not None and not isinstance(named, str):
            raise ConfigError(f"{file}: {PRESET_KEY} must be the name of a preset ({', '.join(presets())}), got {named!r}")
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
        raise ConfigError(f"{origin}: expected a mapping of stages to their fields, found {content!r}")
    return content


def _read(file: str | Path) -> str:
    try:
        if "://" in str(file):
            import fsspec

            with fsspec.open(str(file), "rt", encoding="utf-8") as stream:
                return str(stream.read())
        return Path(file).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot read the configuration: {error}") from error


def _preset(name: str) -> Mapping[str, Any]:
    if name not in presets():
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, presets())}; there are: {', '.join(presets())}")
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
                raise ConfigError(f"{stage}: unknown stage ({origin}){did_you_mean(str(stage), PipelineConfig.model_fields)}")
            if not isinstance(section, Mapping):
                raise ConfigError(f"{stage}: expected a mapping of its fields ({origin}), found {section!r}")
            merged.setdefault(stage, {}).update(section)
            origins.update({(stage, field): origin for field in section})
    try:
        return PipelineConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_problem(detail, origins) for detail in error.errors(include_url=False))) from error


def _problem(detail: Any, origins: Mapping[tuple[Any, ...], str]) -> str:
    location: tuple[Any, ...] = tuple(detail["loc"][:2])
    key = ".".join(str(part) for part in location)
    origin = origins.get(location, "defaults")
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown field ({origin}){did_you_mean(key, field_names())}"
    if detail["type"] in ("value_error", "assertion_error"):
        return f"{key} ({origin}): {detail['msg'].partition(', ')[2] or detail['msg']}"
    return f"{key}: expected {expected(field_info(key))}, got {detail['input']!r} ({origin})"


def _section(field: FieldInfo) -> type[BaseModel]:
    section = field.annotation
    assert isinstance(section, type)
    assert issubclass(section, BaseModel)
    return section
