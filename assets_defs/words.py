"""How sensors speak of many videos or files."""

from __future__ import annotations

from collections.abc import Sequence


def counted(what: str, names: Sequence[str], shown: int = 3) -> str:
    """`5 waiting (a, b, c and 2 more)`; nothing for none."""
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what} ({', '.join(names[:shown])}{more})"
