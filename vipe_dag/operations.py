"""What runs by itself on a store: settings of sensors and schedules, in `operations.yaml` at its root. Nothing here changes a result."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vipe_dag.config_words import did_you_mean, in_words, shown
from vipe_dag.documents import read_document
from vipe_dag.errors import ConfigError
from vipe_dag.export import FORMATS
from vipe_dag.placement import document
from vipe_dag.strict_yaml import parse

if TYPE_CHECKING:
    from vipe_dag.store import Swept

OPERATIONS_FILE = "operations.yaml"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RerunSettings(_Settings):
    """Computing what the configuration asks for and the store lacks."""

    enabled: bool = Field(False, description="Start the sensor together with Dagster; otherwise it is started in the UI.")
    every_seconds: int = Field(30, ge=1, le=86_400, description="Time between two looks at all videos.")
    queue: int = Field(200, ge=1, le=10_000, description="Most runs that wait or go on at once; a tick requests no more than are missing.")
    attempts: int = Field(3, ge=1, le=100, description="Runs that may fail before a video is left alone until its wanted result changes.")
    approval_above: int = Field(
        100, ge=0, description="A change that computes results of more videos than this anew waits until `approved` names it."
    )
    approved: str | None = Field(None, description="The change that may be computed whatever it costs; the sensor says what to write here.")


class IngestSettings(_Settings):
    """Taking in videos that appear somewhere."""

    location: str | None = Field(None, description="Folder or fsspec URL that is watched, with all folders below; null watches nothing.")
    ready: Literal["settled", "marker"] = Field(
        "settled", description="`settled`: size and etag the same in two ticks; `marker`: `NAME.done` lies beside the file."
    )
    every_seconds: int = Field(30, ge=1, le=86_400, description="Time between two looks at the location.")
    files_per_tick: int = Field(50, ge=1, le=10_000, description="Most files opened in one tick.")
    attempts: int = Field(3, ge=1, le=100, description="Ticks in which a file may fail to open before it is put in quarantine.")


class MaintenanceSettings(_Settings):
    """Nightly upkeep."""

    enabled: bool = Field(False, description="Start the schedules together with Dagster; otherwise they are started in the UI.")
    retention_days: float = Field(14.0, ge=0, description="Results that are not current are kept at least this long.")
    keep: int = Field(2, ge=0, le=1000, description="Newest results of each asset that are always kept.")
    runs_days: float = Field(90.0, ge=0, description="Runs that ended longer ago are removed from the book, with their events.")


class ExportSettings(_Settings):
    """Exports that are kept beside the results: the asset `exports`, which is there when formats are named."""

    formats: tuple[str, ...] = Field((), description="Formats of `vipe-dag export` that the asset writes for each video; none: no asset.")
    folder: str | None = Field(None, description="Local folder, an absolute path: every video gets a folder of its own in it.")

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        for name in formats:
            if name not in FORMATS:
                raise ValueError(f"no export format {name!r}{did_you_mean(name, FORMATS)}; there are: {', '.join(FORMATS)}")
        return tuple(dict.fromkeys(formats))

    @model_validator(mode="after")
    def _placed(self) -> ExportSettings:
        if self.formats and (self.folder is None or not Path(self.folder).is_absolute()):
            raise ValueError("formats need a `folder` beside them, an absolute path")
        return self


class FleetSettings(_Settings):
    """Very many videos, taken together in shards."""

    enabled: bool = Field(False, description="In Dagster a partition is a shard of videos, not a video.")
    shards: int = Field(64, ge=1, le=65_536, description="Number of shards; choose it once, with some 50 to 500 videos in each.")
    attempts: int = Field(
        3, ge=1, le=100, description="Runs in which a video may fail before it is left alone until its wanted result changes."
    )


class Operations(_Settings):
    """Everything that `operations.yaml` may say."""

    rerun: RerunSettings = RerunSettings()
    ingest: IngestSettings = IngestSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    exports: ExportSettings = ExportSettings()
    fleet: FleetSettings = FleetSettings()


def load_operations(root: str) -> Operations:
    """The settings of a store; defaults where its file is absent or silent. Raises ConfigError that names file, field and fact."""
    where = document(root, OPERATIONS_FILE)
    text = read_document(where)
    if text is None:
        return Operations()
    values = parse(text, where) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected sections {', '.join(Operations.model_fields)}, found {type(values).__name__}")
    try:
        return Operations.model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        name = in_words(".".join(map(str, detail["loc"])))
        if detail["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: there is no setting {name}{did_you_mean(name, setting_names())}") from error
        fact = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else f"{detail['msg']}, found {shown(detail['input'])}"
        raise ConfigError(f"{where}: {name}: {fact}") from error


def collect_garbage(root: str, retention_days: float | None = None, keep: int | None = None, dry_run: bool = False) -> list[Swept]:
    """Removes results as the settings of the store say, or the values given; see VideoStore.collect. Raises ConfigError, StoreError."""
    from vipe_dag.store import VideoStore

    settings = load_operations(root).maintenance
    given = {"retention_days": retention_days, "keep": keep}
    for name, value in given.items():
        if value is not None and value < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected 0 or more")
    chosen = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    return VideoStore(root).collect(timedelta(days=chosen.retention_days), chosen.keep, dry_run=dry_run)


def setting_names() -> tuple[str, ...]:
    """Every setting as `section.field`."""
    sections = ((name, type(getattr(Operations(), name))) for name in Operations.model_fields)
    return tuple(f"{section}.{field}" for section, model in sections for field in model.model_fields)
