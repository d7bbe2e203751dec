"""A real S3 server on loopback (moto) that writes down every request, and the environment by which clients find it."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SECRET = "s3cret/Key+That-Nobody-May-See-0815"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIATESTING", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Call:
    """One request: method, path of the object with its bucket, query, status of the answer, bytes of its body."""

    method: str
    path: str
    query: str
    status: int
    sent: int


@dataclass
class ObjectStore:
    """The server. `environment` is all that a client needs."""

    endpoint: str = ""
    calls: list[Call] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    @cached_property
    def client(self) -> Any:
        """A file system that is not the one of the code under test, and caches no listings."""
        import s3fs

        known = {"key": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secret": SECRET, "endpoint_url": self.endpoint}
        return s3fs.S3FileSystem(**known, use_listings_cache=False, skip_instance_cache=True)

    def bucket(self) -> str:
        """Makes an empty bucket."""
        name = f"bucket-{secrets.token_hex(6)}"
        self.client.mkdir(name)
        return name

    @contextmanager
    def counted(self) -> Iterator[list[Call]]:
        """The requests answered meanwhile."""
        start, found = len(self.calls), list[Call]()
        yield found
        found.extend(self.calls[start:])


def methods(calls: Iterable[Call]) -> dict[str, int]:
    return dict(Counter(call.method for call in calls))


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """A server until the block is left. Its threads belong to this process; other processes of the test reach it by its address."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log(self, *_: Any) -> None:
            pass

    store, answer, one_at_a_time = ObjectStore(), DomainDispatcherApplication(create_backend_app), threading.Lock()

    def listening(environ: dict[str, Any], start_response: Any) -> Any:
        status = [0]

        def started(line: str, *rest: Any) -> Any:
            status[0] = int(line.split()[0])
            return start_response(line, *rest)

        with one_at_a_time:  # moto compares an ETag and replaces the object in two steps; S3 does it in one
            body = list(answer(environ, started))
        call = Call(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], status[0], sum(map(len, body)))
        store.calls.append(call)
        return body

    server = make_server("127.0.0.1", 0, listening, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
