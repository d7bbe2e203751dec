"""The parsers of what others write: whatever the bytes, they are taken or refused in one clear line. See benchmarks/fuzz.py."""

from __future__ import annotations

import random

import pytest

from benchmarks import fuzz

MUTATIONS = 40


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_what_ever_made_a_parser_fail_is_refused_or_taken(name: str) -> None:
    with fuzz.target(name) as parse:
        found = [fuzz.refusal(parse, content) for content in fuzz.corpus(name)]
    assert None in found, "the corpus has an input that is sound"


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_random_mutations_are_refused_or_taken(name: str) -> None:
    inputs = fuzz.mutations(name, random.Random(name))
    with fuzz.target(name) as parse:
        for _ in range(MUTATIONS):
            fuzz.refusal(parse, next(inputs))
