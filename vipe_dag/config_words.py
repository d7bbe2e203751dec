"""Configuration fields in words, for error messages and for the reference in docs/: what a field takes, and the nearest valid name."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union

import annotated_types
from pydantic.fields import FieldInfo

MAX_SHOWN = 120


def expected(field: FieldInfo) -> str:
    """What a field takes, in words: `integer from 64 to 8192`, `one of 'jxl', 'reference'`, `list of 1 to 4, each a number above 0`."""
    return _words(field.annotation, field.metadata)


def shown(value: object) -> str:
    """A value that somebody gave, at a length that fits into a sentence."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."


def in_words(name: object) -> str:
    """A name that somebody gave, in one line and at a length that fits into a sentence."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(name)[:MAX_SHOWN])


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name; a field given without its stage, or under the wrong one, finds its home."""
    names, name = list(valid), name[:MAX_SHOWN]
    same_field = [known for known in names if known.rpartition(".")[2] == name.rpartition(".")[2]]
    in_stage = [known for known in names if known.partition(".")[0] == name.partition(".")[0]]
    for choice in (same_field, difflib.get_close_matches(name, in_stage, 1, 0.5), difflib.get_close_matches(name, names, 1, 0.5)):
        if choice:
            return f"; did you mean {choice[0]}?"
    return ""


def _words(annotation: Any, bounds: Iterable[Any]) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [part for bound in arguments[1:] for part in (bound.metadata if isinstance(bound, FieldInfo) else [bound])]
        return _words(arguments[0], inner)
    if origin is tuple:
        element = _words(arguments[0], ())
        return f"list{_length_words(bounds)}, each {'an' if element.startswith('integer') else 'a'} {element}"
    return " ".join(part for part in (_type_words(annotation), _bound_words(bounds)) if part)


def _type_words(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_words(argument) for argument in arguments)
    words = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null"}
    return words.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _bound_words(bounds: Iterable[Any]) -> str:
    lower = upper = ""
    for bound in bounds:
        if isinstance(bound, annotated_types.Ge):
            lower = f"from {bound.ge}"
        elif isinstance(bound, annotated_types.Gt):
            lower = f"above {bound.gt}"
        elif isinstance(bound, annotated_types.Le):
            upper = f"at most {bound.le}"
        elif isinstance(bound, annotated_types.Lt):
            upper = f"below {bound.lt}"
    if lower.startswith("from") and upper.startswith("at most"):
        return f"{lower} to {upper.removeprefix('at most ')}"
    return " and ".join(part for part in (lower, upper) if part)


def _length_words(bounds: Iterable[Any]) -> str:
    least = next((bound.min_length for bound in bounds if isinstance(bound, annotated_types.MinLen)), None)
    most = next((bound.max_length for bound in bounds if isinstance(bound, annotated_types.MaxLen)), None)
    if least is None and most is None:
        return ""
    return f" of {least} or more" if most is None else f" of at most {most}" if least is None else f" of {least} to {most}"
