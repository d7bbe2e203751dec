"""Configuration fields in words, for error messages and for the reference in docs/: what a field takes, and the nearest valid name."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Literal, Union

import annotated_types
from pydantic.fields import FieldInfo


def expected(field: FieldInfo) -> str:
    """What a field takes, in words: `integer from 64 to 8192`, `one of 'jxl', 'reference'`."""
    return " ".join(part for part in (_type_words(field.annotation), _bound_words(field.metadata)) if part)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name; a field given without its stage, or under the wrong one, finds its home."""
    names = list(valid)
    same_field = [known for known in names if known.rpartition(".")[2] == name.rpartition(".")[2]]
    in_stage = [known for known in names if known.partition(".")[0] == name.partition(".")[0]]
    for choice in (same_field, difflib.get_close_matches(name, in_stage, 1, 0.5), difflib.get_close_matches(name, names, 1, 0.5)):
        if choice:
            return f"; did you mean {choice[0]}?"
    return ""


def _type_words(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_words(argument) for argument in arguments)
    if origin is tuple:
        return "list of " + _type_words(arguments[0])
    if origin is typing.Annotated:
        return " ".join(part for part in (_type_words(arguments[0]), _bound_words(arguments[1:])) if part)
    words = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null"}
    return words.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _bound_words(metadata: Iterable[Any]) -> str:
    lower = upper = ""
    for bound in metadata:
        if isinstance(bound, FieldInfo):
            return _bound_words(bound.metadata)
        if isinstance(bound, annotated_types.Ge):
            lower = f"from {bound.ge}"
        elif isinstance(bound, annotated_types.Gt):
            lower = f"above {bound.gt}"
        elif isinstance(bound, annotated_types.Le):
            upper = f"to {bound.le}" if lower.startswith("from") else f"at most {bound.le}"
        elif isinstance(bound, annotated_types.Lt):
            upper = f"below {bound.lt}"
    return f"{lower} and {upper}" if lower and upper and not upper.startswith("to") else f"{lower} {upper}".strip()
