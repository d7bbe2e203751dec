"""A PostgreSQL server of the tests' own: on loopback, in a directory below /tmp, as a user that is not root, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSWORD = "pg-pa55word-0815"
OPTIONS = "-c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=40"
START_SECONDS = "120"


@dataclass(frozen=True)
class Postgres:
    """url: as Dagster wants it, in the form that names the driver."""

    port: int

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://tester:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def ask(self, sql: str) -> list[Any]:
        """Runs statements in a connection of its own; the rows of the last one."""
        import psycopg2

        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user="tester", password=PASSWORD, dbname="postgres")
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()


def program(name: str) -> str | None:
    """Where Debian keeps the programs of the server, off the path; else wherever the path leads."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(installed[-1]) if installed else shutil.which(name)


@contextmanager
def serving() -> Iterator[Postgres]:
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    assert initdb
    assert pg_ctl
    folder = Path(tempfile.mkdtemp(prefix="vipe-dag-pg-"))
    user = _user()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])

    def call(*command: str) -> None:
        with (folder / "output").open("ab") as output:
            done = subprocess.run(command, cwd=folder, stdout=output, stderr=output, user=user, check=False, timeout=300)
        assert done.returncode == 0, (folder / "output").read_text(errors="replace")[-2000:]

    try:
        (folder / "password").write_text(PASSWORD)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        data = str(folder / "data")
        call(initdb, "-D", data, "-U", "tester", "--pwfile", str(folder / "password"), "--auth=scram-sha-256", "-E", "UTF8", "--no-sync")
        call(pg_ctl, "-D", data, "-w", "-t", START_SECONDS, "-l", str(folder / "log"), "-o", f"-p {port} -k {folder} {OPTIONS}", "start")
        try:
            yield Postgres(port)
        finally:
            call(pg_ctl, "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> str | None:
    """The server refuses to run as root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)
