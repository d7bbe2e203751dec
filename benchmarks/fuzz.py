"""Mutates small files at random and feeds them to the parsers of what others write: every refusal must be a VipeDagError.

    python -m benchmarks.fuzz --seconds 600            # all targets; what escapes is kept in the corpus and shown
    python -m benchmarks.fuzz --only pointer --seed 3

The corpus, tests/fuzz_corpus/TARGET/, holds what is mutated, and every input that ever made a parser fail; the tests replay it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

from vipe_dag.calibration import load_calibration
from vipe_dag.config import load_config
from vipe_dag.errors import VipeDagError
from vipe_dag.ingest import LEDGER, read_ledger
from vipe_dag.operations import OPERATIONS_FILE, load_operations
from vipe_dag.store import VideoStore
from vipe_dag.video import SourceInfo, open_source

CORPUS = Path(__file__).parents[1] / "tests" / "fuzz_corpus"
VIDEO, ASSET, GENERATION = "walk-0a1b2c3d", "frames", "aaaaaaaaaaaaaaaa-00000000.zarr"
SOURCE = SourceInfo(width=640, height=480, codec="png", container="folder", duration=None, fps=None, frame_count=None)
MAX_BYTES = 20_000
PIECES = [
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", "ü".encode(), "\u202e".encode(), b"\n", b"\r", b" ", b"\t", b"#", b"%", b"~"),
    *(b"[" * 200, b"{" * 200, b'{"a":' * 200, b"'", b'"', b"\\", b"..", b"/", b"../../../", b"C:\\", b"://", b"file://", b"\\ud800"),
    *(b"9" * 5000, b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b".nan", b"null", b"true", b"[]", b"{}", b'""', b"1_000", b"0x10"),
    *(b"&a [*a]", b"*a", b"<<: *a", b"!!python/object/apply:os.system [x]", b"!!int x", b"? [a]\n: b", b"--- ", b"a" * 10_000),
    *(b"2024-01-01T00:00:00", b"__proto__", b"frames", b"rgb/a.png", b"{{}}", b"${HOME}", b"$(x)", b"`x`"),
]
"""What tends to break parsers of JSON, YAML and lines."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=600.0, help="In all, shared by the targets.")
    options.add_argument("--only", choices=sorted(TARGETS), action="append", help="Default: every target.")
    options.add_argument("--seed", type=int, default=None, help="Default: from the clock.")
    chosen = options.parse_args()
    names = chosen.only or sorted(TARGETS)
    seed = int(time.time()) if chosen.seed is None else chosen.seed
    failed = 0
    for name in names:
        inputs = refused = 0
        until = time.monotonic() + chosen.seconds / len(names)
        with target(name) as parse:
            for content in mutations(name, random.Random(f"{name} {seed}")):
                if time.monotonic() > until:
                    break
                inputs += 1
                try:
                    refused += refusal(parse, content) is not None
                except Exception as error:
                    failed += 1
                    print(f"{name}: {type(error).__name__}: {str(error)[:200]}; kept as {keep(name, content)}")
        print(f"{name}: {inputs} inputs, {refused} refused, seed {seed}", flush=True)
    return 1 if failed else 0


def refusal(parse: Callable[[bytes], object], content: bytes) -> str | None:
    """What the parser says against an input; None when it takes it. Raises whatever else it raises, and ValueError for a long story."""
    try:
        parse(content)
    except VipeDagError as error:
        said = str(error)
        if len(said) > MAX_SAID or "\n" in said:
            raise ValueError(f"not one clear line: {said[:100]!r} ... ({len(said)} characters)") from error
        return said
    return None


MAX_SAID = 1500


def corpus(name: str) -> list[bytes]:
    """The inputs of a target, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def keep(name: str, content: bytes) -> Path:
    """Adds an input to the corpus."""
    path = CORPUS / name / f"found_{blake2b(content, digest_size=6).hexdigest()}"
    path.write_bytes(content)
    return path


def mutations(name: str, dice: random.Random) -> Iterator[bytes]:
    """Inputs without end: those of the corpus with pieces cut out, doubled, overwritten, put in, or taken from another."""
    seeds = corpus(name)
    while True:
        content = bytearray(dice.choice(seeds))
        for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
            start = dice.randrange(len(content) + 1)
            end = min(len(content), start + dice.choice((0, 1, 1, 4, 20, 200)))
            other = dice.choice(seeds)
            cut = dice.randrange(len(other) + 1)
            piece = dice.choice((b"", bytes(content[start:end]) * 2, dice.randbytes(1), dice.choice(PIECES), other[cut : cut + 50]))
            content[start:end] = piece
        yield bytes(content[:MAX_BYTES])


@contextlib.contextmanager
def target(name: str) -> Iterator[Callable[[bytes], object]]:
    """The parser of that name, with a folder to itself."""
    with tempfile.TemporaryDirectory() as folder:
        yield TARGETS[name](Path(folder))


def _sidecar(folder: Path) -> Callable[[bytes], object]:
    path = folder / "walk.intrinsics.json"
    return lambda content: (path.write_bytes(content), load_calibration(str(path), SOURCE))


def _times(folder: Path) -> Callable[[bytes], object]:
    (folder / "rgb").mkdir()
    for name in ("a.png", "b.png"):
        (folder / "rgb" / name).write_bytes(b"")
    path = folder / "rgb.txt"
    return lambda content: (path.write_bytes(content), open_source(str(folder)))


def _config(folder: Path) -> Callable[[bytes], object]:
    path = folder / "config.yaml"
    return lambda content: (path.write_bytes(content), load_config(file=path))


def _operations(folder: Path) -> Callable[[bytes], object]:
    path = folder / OPERATIONS_FILE
    return lambda content: (path.write_bytes(content), load_operations(str(folder)))


def _pointer(folder: Path) -> Callable[[bytes], object]:
    """The pointer of one generation; then all that the store does with what it says."""
    store, path = VideoStore(folder), folder / VIDEO / ASSET / "_current.json"
    path.parent.mkdir(parents=True)
    return lambda content: (path.write_bytes(content), store.videos(), store.current(VIDEO, ASSET), store.generations(VIDEO, ASSET))


def _commit(folder: Path) -> Callable[[bytes], object]:
    """The root document of a generation, beside a sound one."""
    store, asset = VideoStore(folder), folder / VIDEO / ASSET
    for name in (GENERATION, GENERATION.replace("0.zarr", "1.zarr")):
        (asset / name).mkdir(parents=True)
    sound = json.loads(corpus("commit")[0])
    sound["attributes"]["commit"]["generation"] = GENERATION.replace("0.zarr", "1.zarr")
    (asset / GENERATION.replace("0.zarr", "1.zarr") / "zarr.json").write_text(json.dumps(sound))
    path = asset / GENERATION / "zarr.json"
    return lambda content: (path.write_bytes(content), store.generations(VIDEO, ASSET), store.find(VIDEO, ASSET, "aaaaaaaaaaaaaaaa"))


def _record(folder: Path) -> Callable[[bytes], object]:
    store, path = VideoStore(folder), folder / VIDEO / "_source.json"
    path.parent.mkdir()
    return lambda content: (path.write_bytes(content), store.source(VIDEO).calibration)


def _ledger(folder: Path) -> Callable[[bytes], object]:
    store, path = VideoStore(folder), folder / f"_{LEDGER}"

    def parse(content: bytes) -> None:
        path.write_bytes(content)
        ledger = read_ledger(store)
        assert isinstance(ledger.superseded | ledger.gone, frozenset)

    return parse


TARGETS: dict[str, Callable[[Path], Callable[[bytes], object]]] = {
    "commit": _commit,
    "config": _config,
    "ledger": _ledger,
    "operations": _operations,
    "pointer": _pointer,
    "record": _record,
    "sidecar": _sidecar,
    "times": _times,
}


if __name__ == "__main__":
    sys.exit(main())
