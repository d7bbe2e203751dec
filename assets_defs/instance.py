"""The book of a store: a Dagster instance in its home directory, the videos it knows as partitions, runs whose process died."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import psutil
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.storage.tags import GRPC_INFO_TAG

from assets_defs.checks import check_results
from assets_defs.partitions import VIDEOS
from resources.video_store import VideoStoreResource
from vipe_dag.checks import Check
from vipe_dag.errors import ConfigError, StoreError
from vipe_dag.graph import STAGES

if TYPE_CHECKING:
    from vipe_dag.store import VideoStore
    from vipe_dag.store.pointer import Pointer

PROCESS_TAG = "vipe_dag/process"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_STARTTIME = 19
"""Index among the fields of /proc/PID/stat that follow the name of the program: see proc_pid_stat(5), field 22."""
DATA_VERSION_TAG = "dagster/data_version"
GONE = "gone"
"""In place of a fingerprint: the book had a result that the store has no longer."""
START_PATIENCE = timedelta(minutes=1)
"""Longer than a process takes to load its libraries and to name itself."""
UNFINISHED = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
DATABASE_PACKAGES = frozenset({"sqlalchemy", "sqlite3", "psycopg2", "dagster_postgres"})
"""Whose exceptions mean that the book could not be read or written."""
HOME_CONFIG = """\
# Written once by vipe-dag; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 1
python_logs:
  python_log_level: INFO
"""
"""One run at a time: a stage uses all cores, and two videos at once would only wait for each other. The log without some 40 lines a run
that tell of events, which are in the book whatever the level."""


def prepare_home(home: Path) -> None:
    """Makes the directory, with a configuration unless it has one already."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / "dagster.yaml"
    if not file.exists():
        file.write_text(HOME_CONFIG, encoding="utf-8")


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance of that home, made when absent. Use it as a context manager. Raises ConfigError, StoreError: see book_errors."""
    prepare_home(home)
    with book_errors(home):
        return dg.DagsterInstance.from_config(str(home))


class _Unhurried(sqlite3.Connection):
    """A connection whose commits do not wait for the disk."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.execute("PRAGMA synchronous = NORMAL")


@contextmanager
def kept_open(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Serves the embedded databases of one run from connections that stay open meanwhile.

    Dagster makes an engine and a connection for each statement: SQLAlchemy compiles the statement again, and whoever closes the last
    connection to an SQLite database moves its log into it and waits for the disk (https://sqlite.org/wal.html, section 6). The two are
    half of what a run costs beside its stages. Nor does each of some 150 commits wait for the disk: the end of the run does. A process that
    is killed loses nothing by that; after a power cut the book may lack the last seconds, is never damaged
    (https://sqlite.org/pragma.html#pragma_synchronous), and is made to say what the store has. Other instances and other runs' databases
    are served as ever.
    """
    from dagster._core.storage.event_log.sqlite.sqlite_event_log import (  # brings SQLAlchemy, which definitions do without
        INDEX_SHARD_NAME,
        SQLITE_BUSY_TIMEOUT_SECONDS,
        SqliteEventLogStorage,
        create_engine,
    )

    storage = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage):
        yield
        return
    connect = storage.run_connection
    with ExitStack() as kept:
        engines = {}
        for shard in (INDEX_SHARD_NAME, run_id):
            with connect(shard):
                pass  # that makes the database where there is none
            connect_args = {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False, "factory": _Unhurried}
            engines[shard] = create_engine(storage.conn_string_for_shard(shard), connect_args=connect_args)
            kept.callback(engines[shard].dispose)
            with engines[shard].connect() as first:
                first.exec_driver_sql("SELECT 1 FROM sqlite_master")  # it takes part in the log from its first reading on

        def run_connection(shard: str | None = None) -> Any:
            return engines[shard].begin() if shard in engines else connect(shard)

        kept.callback(vars(storage).pop, "run_connection")
        kept.callback(vars(storage).pop, "index_connection")
        vars(storage).update(run_connection=run_connection, index_connection=lambda: run_connection(INDEX_SHARD_NAME))
        yield


@contextmanager
def book_errors(home: Path) -> Iterator[None]:
    """Says in one line what is wrong with Dagster's database: ConfigError for its configuration, StoreError where it cannot be reached."""
    try:
        yield
    except dg.DagsterInvalidConfigError as error:
        said = str(error.errors[0].message).partition("Stack Trace")[0]
        raise ConfigError(f"{home / 'dagster.yaml'}: {' '.join((said.partition('PostProcessingError: ')[2] or said).split())}") from None
    except ImportError as error:
        if error.name == "psycopg":
            raise ConfigError(f"{home / 'dagster.yaml'}: the URL of the database must begin with postgresql+psycopg2://") from None
        raise ConfigError(
            f"{home / 'dagster.yaml'}: needs {error.name}, which is not installed; pip install 'vipe-dag[postgres]'"
        ) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in DATABASE_PACKAGES:
            raise
        reason = " ".join(str(error).partition("[SQL")[0].split())
        raise StoreError(f"{home}: Dagster's database failed ({reason}); results are in the store: run again") from None


def add_videos(instance: dg.DagsterInstance, video_ids: Iterable[str]) -> None:
    """Makes a partition of each video that is none yet."""
    known = set(instance.get_dynamic_partitions(VIDEOS))
    new = [video_id for video_id in video_ids if video_id not in known]
    if new:
        instance.add_dynamic_partitions(VIDEOS, new)


def adopt(instance: dg.DagsterInstance, store: VideoStore) -> int:
    """Makes the book say what the store has: videos, results computed or made current elsewhere, results that are gone.

    So a store that was copied here, filled by plain Python, or tidied by hand looks in the UI as it is. Returns the number of videos.
    """
    video_ids = store.videos()
    add_videos(instance, video_ids)
    for stage in STAGES:
        entered = stored_versions(instance, stage.name)
        for video_id in video_ids:
            pointer, version = store.current(video_id, stage.name), entered.get(video_id)
            if pointer is not None and version != pointer.fingerprint:
                enter(instance, store, pointer, "found in the store")
            elif pointer is None and version not in (None, GONE):
                instance.report_runless_asset_event(_materialization(stage.name, video_id, GONE, {"status": "gone from the store"}))
    return len(video_ids)


def enter(instance: dg.DagsterInstance, store: VideoStore, pointer: Pointer, status: str) -> None:
    """Enters a result that no run of this instance computed: where it is, and the checks that were kept with it."""
    where = dg.MetadataValue.path(store.path(pointer.video_id, pointer.asset))
    metadata = {"status": status, "fingerprint": pointer.fingerprint, "store_path": where}
    instance.report_runless_asset_event(_materialization(pointer.asset, pointer.video_id, pointer.fingerprint, metadata))
    report_checks(instance, check_results(pointer.asset, [Check.from_json(check) for check in pointer.checks]))


def report_checks(instance: dg.DagsterInstance, results: Iterable[dg.AssetCheckResult]) -> None:
    """Enters outcomes of checks that no run found; each names its asset and its check."""
    for result in results:
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey.from_coercible(result.asset_key or ""),
                check_name=result.check_name or "",
                passed=result.passed,
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
            )
        )


def stored_versions(instance: dg.DagsterInstance, stage: str) -> dict[str, str]:
    """Per video the fingerprint of the latest materialization, by one query, which is not among what Dagster calls public."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        dg.AssetKey(stage), dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    return {video_id: found[DATA_VERSION_TAG] for video_id, found in tags.items()}


def unfinished_runs(instance: dg.DagsterInstance) -> Sequence[dg.DagsterRun]:
    """Runs that wait or go on."""
    return instance.get_runs(filters=dg.RunsFilter(statuses=list(UNFINISHED)))


def _materialization(stage: str, video_id: str, version: str, metadata: Mapping[str, Any]) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(dg.AssetKey(stage), partition=video_id, tags={DATA_VERSION_TAG: version}, metadata=metadata)


def process_tags() -> dict[str, str]:
    """Tags by which `close_lost_runs` can tell that this process is gone."""
    return {PROCESS_TAG: _process_name(os.getpid())}


class TaggingVideoStore(VideoStoreResource):
    """Tags the run with its process. Resources are made before a step takes its place in a pool, which it may be killed with."""

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        if context.instance is not None and context.run is not None and context.instance.has_run(context.run.run_id):
            context.instance.add_run_tags(context.run.run_id, process_tags())


def close_lost_runs(instance: dg.DagsterInstance, patience: timedelta = START_PATIENCE) -> int:
    """Marks runs as failed whose process on this machine is gone (killed, or the power went), and frees their slots; returns how many.

    patience: how long a run that has named no process yet may stay so where the server that was to start it does not answer.
    """
    host, limit = socket.gethostname(), datetime.now(UTC) - patience
    lost = 0
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])):
        run = record.dagster_run
        name = run.tags.get(PROCESS_TAG)
        killed = name is not None and name.startswith(f"{host}:") and not _alive(name)
        never_began = name is None and record.update_timestamp <= limit and _server_gone(run)
        if killed or never_began:
            instance.report_run_failed(run, "the process of this run ended without closing it")
            lost += 1
    release_slots(instance)
    return lost


def _server_gone(run: dg.DagsterRun) -> bool:
    """The code server that starts the process of this run, and stays as long as it, does not answer; False where there is none."""
    from dagster._grpc.client import DagsterGrpcClient  # with gRPC, which the command line does without

    address = run.tags.get(GRPC_INFO_TAG)
    if address is None:
        return False
    try:
        DagsterGrpcClient(**json.loads(address)).ping("")
    except DagsterUserCodeUnreachableError:
        return True
    return False


def release_slots(instance: dg.DagsterInstance) -> None:
    """Frees the places in pools that runs hold though they ended: where the database was lost with the step, Dagster leaves them taken."""
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        for run_id in storage.get_concurrency_info(pool).active_run_ids:
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)


def _process_name(pid: int) -> str:
    """Host, pid and start, so that a pid that was given out again is not taken for the old process."""
    return f"{socket.gethostname()}:{pid}:{_start(pid)}"


def _start(pid: int) -> str:
    """When a process began, by what does not move when the clock is set: on Linux which boot of the machine, and ticks since then."""
    if not sys.platform.startswith("linux"):
        return f"{psutil.Process(pid).create_time():.0f}"
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return f"{_BOOT.read_text(encoding='utf-8').strip()}-{after_name[_STARTTIME]}"


def _alive(name: str) -> bool:
    """A process that ended and that nobody has waited for, as in a container without an init, is still listed and is not alive."""
    try:
        pid = int(name.split(":")[1])
        return _process_name(pid) == name and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
