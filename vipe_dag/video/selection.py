"""Which frames of one pass are taken: clip, stride and limits, decided frame by frame."""

from __future__ import annotations

from vipe_dag.errors import SourceError
from vipe_dag.video.records import Clip, Limits


class Selection:
    """Feed it the time of every frame in order: first `over`, then, when that is False, `takes`; at the end `close`."""

    def __init__(self, clip: Clip, limits: Limits, origin: str) -> None:
        self._clip, self._limits, self._origin = clip, limits, origin
        self._zero: float | None = None
        self._inside = 0
        self._first_taken = 0.0
        self._taken = 0

    def begun(self, time: float) -> bool:
        """Whether the clip has begun at this time."""
        return self._clip.begun(self._since_first(time))

    def over(self, time: float) -> bool:
        """Whether the clip ended before this frame, so that nothing more needs decoding."""
        return self._clip.over(self._since_first(time))

    def takes(self, time: float) -> bool:
        """Whether this frame is wanted. Raises SourceError beyond the limits."""
        if not self.begun(time):
            return False
        wanted = self._inside % self._clip.stride == 0
        self._inside += 1
        if wanted:
            self._count(time)
        return wanted

    def close(self, seen: int) -> None:
        """Check that enough frames were taken. Raises SourceError."""
        if self._taken < 2:
            if seen < 2:
                raise SourceError(f"{self._origin}: {seen} frame{'s'[: seen != 1]} in it, but a video needs at least 2 frames")
            raise SourceError(
                f"{self._origin}: --start/--end/--stride leave {self._taken} of {seen} frames, but at least 2 frames are needed"
            )

    def _count(self, time: float) -> None:
        if not self._taken:
            self._first_taken = time
        self._taken += 1
        if self._taken > self._limits.max_frames:
            raise SourceError(f"{self._origin}: more than frames.max_frames = {self._limits.max_frames} frames; select a part or raise it")
        if time - self._first_taken > self._limits.max_seconds:
            raise SourceError(f"{self._origin}: longer than frames.max_seconds = {self._limits.max_seconds:g} s; select a part or raise it")

    def _since_first(self, time: float) -> float:
        if self._zero is None:
            self._zero = time
        # a nanosecond grid: 10.1 - 10.0 is 0.0999999999999996 in floating point, and must not miss --start 0.1
        return round(time - self._zero, 9)
