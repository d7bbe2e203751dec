"""Any sequence of writes, crashes, failures, flips and sweeps leaves the store in the state of a plain dictionary."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from store_contract import VIDEO, motion, put_keyframes
from vipe_dag.errors import StoreError
from vipe_dag.store import VideoStore

FINGERPRINTS = st.sampled_from(["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"])
LONG_AFTER = timedelta(hours=1)


class StageFailedError(Exception):
    """A stage that fails."""


@dataclass
class Model:
    """What the store must look like: values by fingerprint in order of their commits, and which one is current."""

    current: tuple[str, float] | None = None
    committed: list[tuple[str, float]] = field(default_factory=list)

    def newest(self, fingerprint: str) -> tuple[str, float] | None:
        if self.current and self.current[0] == fingerprint:
            return self.current
        return next((entry for entry in reversed(self.committed) if entry[0] == fingerprint), None)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store, self.model = VideoStore(f"memory://stateful-{secrets.token_hex(8)}"), Model()
        self.abandoned: list[object] = []
        self.value = 0.0

    def teardown(self) -> None:
        self.store._backend.remove("")

    @rule(fingerprint=FINGERPRINTS)
    def commit(self, fingerprint: str) -> None:
        self.value += 1
        with self.store.begin(VIDEO, "keyframes", fingerprint) as writer:
            put_keyframes(writer, self.value)
        self.model.current = (fingerprint, self.value)
        self.model.committed.append(self.model.current)

    @rule(fingerprint=FINGERPRINTS, put=st.booleans())
    def crash(self, fingerprint: str, put: bool) -> None:
        """The process is gone: nobody leaves the block. Its memory is kept here so that Python does not leave it either."""
        unfinished = self.store.begin(VIDEO, "keyframes", fingerprint)
        writer = unfinished.__enter__()
        self.abandoned.append(unfinished)
        if put:
            put_keyframes(writer, -1.0)
            writer.finish()

    @rule(fingerprint=FINGERPRINTS)
    def fail(self, fingerprint: str) -> None:
        def stage() -> None:
            with self.store.begin(VIDEO, "keyframes", fingerprint) as writer:
                put_keyframes(writer, -2.0)
                raise StageFailedError

        with pytest.raises(StageFailedError):
            stage()

    @rule(fingerprint=FINGERPRINTS)
    def break_the_schema(self, fingerprint: str) -> None:
        with pytest.raises(StoreError), self.store.begin(VIDEO, "keyframes", fingerprint) as writer:
            writer.attrs({"flags": []})

    @rule(fingerprint=FINGERPRINTS)
    def flip(self, fingerprint: str) -> None:
        found, expected = self.store.point(VIDEO, "keyframes", fingerprint), self.model.newest(fingerprint)
        assert (found is None) == (expected is None)
        self.model.current = expected or self.model.current

    @rule(fingerprint=FINGERPRINTS)
    def read_an_older_one(self, fingerprint: str) -> None:
        expected = self.model.newest(fingerprint)
        if expected is not None:
            assert motion(self.store, fingerprint) == expected[1]

    @rule(first=FINGERPRINTS, second=FINGERPRINTS)
    def race(self, first: str, second: str) -> None:
        """Two writers overlap: of one fingerprint both succeed, of two the later commit is refused but kept."""
        self.value += 2
        mine = theirs = (first, self.value)
        with ExitStack() as outer:
            if first != second:
                outer.enter_context(pytest.raises(StoreError, match="another run made"))
            with self.store.begin(VIDEO, "keyframes", first) as writer:
                put_keyframes(writer, self.value)
                with self.store.begin(VIDEO, "keyframes", second) as other:
                    put_keyframes(other, self.value - 1)
                theirs = (second, self.value - 1)
        self.model.committed += [theirs, mine]
        self.model.current = mine if first == second else theirs

    @rule()
    def sweep(self) -> None:
        self.store.sweep(timedelta(0), now=datetime.now(UTC) + LONG_AFTER)
        names = [n for n in self.store._backend.children(f"{VIDEO}/keyframes") if n.endswith(".zarr")]
        assert len(names) == len(self.model.committed)

    @invariant()
    def the_current_value_is_the_models(self) -> None:
        current = self.store.current(VIDEO, "keyframes")
        if self.model.current is None:
            assert current is None
        else:
            assert current is not None
            assert (current.fingerprint, motion(self.store)) == self.model.current

    @invariant()
    def complete_generations_are_the_models(self) -> None:
        found = [pointer.fingerprint for pointer in self.store.generations(VIDEO, "keyframes")]
        assert found == [fingerprint for fingerprint, _ in self.model.committed]


TestStateful = StoreMachine.TestCase
TestStateful.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
