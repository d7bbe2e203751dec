"""When each decoded picture is shown: container timestamps as they are, and rules for streams that lack or break them."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

from vipe_dag.video.records import NOMINAL_FPS

NO_PRESENTATION_TIMES = ("avi",)
"""Containers that store decoding times only; pictures leave the decoder in the order in which they are shown, so the k-th one gets the k-th
decoding time."""

_FASTEST, _SLOWEST = 10_000, Fraction(1, 86_400)


class Clock:
    """Strictly increasing times of consecutive pictures, seconds.

    A missing timestamp is the one before plus a nominal period. One that does not increase is a repeat (less than a period back: half a
    period after the one before) or a jump (all later times are shifted to follow on). `flags` says so: `nominal_times` when no picture had
    a timestamp, else `repaired_times`.
    """

    def __init__(self, container: str, rate: Fraction | None, start: Fraction) -> None:
        self.period = 1 / usable_rate(rate)
        self._start = start
        self._queue: deque[Fraction] | None = deque() if container in NO_PRESENTATION_TIMES else None
        self._shift = Fraction(0)
        self._last: Fraction | None = None
        self._known = self._repaired = 0

    def packet(self, decoding_time: Fraction | None) -> None:
        """Note a packet that will become one picture; needed for containers without presentation times."""
        if self._queue is not None and decoding_time is not None:
            self._queue.append(decoding_time)

    def show(self, presentation_time: Fraction | None) -> float:
        """The time of the next picture."""
        if self._queue is not None:
            presentation_time = self._queue.popleft() if self._queue else None
        self._last = self._next(presentation_time)
        return float(self._last)

    @property
    def last(self) -> Fraction:
        """The time that the last picture got."""
        return self._start if self._last is None else self._last

    @property
    def flags(self) -> tuple[str, ...]:
        if not self._repaired:
            return ()
        return ("repaired_times",) if self._known else ("nominal_times",)

    def _next(self, stamp: Fraction | None) -> Fraction:
        if stamp is None:
            self._repaired += 1
            return self._start if self._last is None else self._last + self.period
        self._known += 1
        time = stamp + self._shift
        if self._last is None or time > self._last:
            return time
        self._repaired += 1
        if time > self._last - self.period:
            return self._last + self.period / 2
        self._shift += self._last + self.period - time
        return self._last + self.period


def usable_rate(rate: Fraction | None) -> Fraction:
    """The rate, or NOMINAL_FPS when it is unknown or absurd."""
    return Fraction(rate) if rate and _SLOWEST <= rate <= _FASTEST else Fraction(NOMINAL_FPS)
