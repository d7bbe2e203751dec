"""Where things are: the default root, the configuration of a store, the home of Dagster's book. Nothing here changes a result."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vipe_dag.config import PipelineConfig, load_config
from vipe_dag.documents import read_document
from vipe_dag.errors import ConfigError

ROOT_VARIABLE = "VIPE_DAG_ROOT"
CONFIG_VARIABLE = "VIPE_DAG_CONFIG"
HOME_VARIABLE = "DAGSTER_HOME"
DEFAULT_ROOT = "store"


def default_root() -> str:
    """$VIPE_DAG_ROOT, else `store` below the working directory."""
    return os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT


def is_local(root: str) -> bool:
    """Is the root a directory of this machine rather than a URL of an object store."""
    return "://" not in root or root.startswith("file://")


def local_path(root: str) -> Path:
    """Absolute directory of a local root. Raises ConfigError for a URL of an object store."""
    if not is_local(root):
        raise ConfigError(f"{root}: not a local directory")
    return Path(root.removeprefix("file://")).expanduser().absolute()


def config_file(root: str) -> str | None:
    """The YAML on which every configuration of this store builds: $VIPE_DAG_CONFIG, else `<root>/config.yaml` when it exists, else None."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return named
    place = document(root, "config.yaml")
    return None if read_document(place) is None else place


def document(root: str, name: str) -> str:
    """Path or URL of a document at the root of a store."""
    return str(local_path(root) / name) if is_local(root) else f"{root.rstrip('/')}/{name}"


def configuration(root: str, preset: str | None = None, overrides: Iterable[str] = ()) -> PipelineConfig:
    """The configuration of a run on this store: preset, then the store's file, then overrides. Raises ConfigError."""
    return load_config(preset, overrides, config_file(root))


def dagster_home(root: str) -> Path:
    """$DAGSTER_HOME, else `<root>/_dagster`. Raises ConfigError for an object store without $DAGSTER_HOME."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    if not is_local(root):
        raise ConfigError(f"{root}: Dagster's book cannot live in an object store; set DAGSTER_HOME to a directory of this machine")
    return local_path(root) / "_dagster"
