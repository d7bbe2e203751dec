"""What comes from others stays where it belongs: names, links, documents, and who can reach a server."""

from __future__ import annotations

import ast
import inspect
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clips import write_clip
from store_contract import OLD, VIDEO, write_keyframes
from vipe_dag.cli import commands
from vipe_dag.cli.ui import warn_unless_loopback
from vipe_dag.errors import SourceError, StoreError, VipeDagError
from vipe_dag.ingest import ingest, read_ledger
from vipe_dag.operations import IngestSettings
from vipe_dag.store import VideoStore
from vipe_dag.store.pointer import asset_key
from vipe_dag.video import open_source

PACKAGES = [
    path for name in ("vipe_dag", "vipe_kernels", "assets_defs", "resources") for path in (Path(__file__).parents[1] / name).rglob("*.py")
]
NASTY = [
    *(
        "..",
        "../..",
        "a/../../b",
        "a\\..\\b",
        "\0",
        "a\0b",
        "~",
        "~root",
        "CON",
        "a:b",
        "\u202egpj",
        "\ud800",
        "\uff0e\uff0e\uff0f",
        "%2e%2e%2f",
        "-rf",
        ".",
    ),
    "a" * 10_000,
]
names = st.one_of(
    st.sampled_from(NASTY), st.text(max_size=40), st.lists(st.sampled_from(["..", "/", "\\", "a", "~", "\0"]), max_size=9).map("".join)
)


# Names


@given(names)
def test_a_video_id_is_refused_or_names_a_folder_of_the_store(name: str) -> None:
    root = Path("/store")
    try:
        key = asset_key(name, "frames")
    except StoreError:
        return
    path = (root / key).resolve()
    assert path.parts[: len(root.parts)] == root.parts
    assert path.parts[len(root.parts) :] == (name, "frames")


@given(names, st.sampled_from(["", "https://", "s3://", "file://", "memory://"]))
def test_a_source_of_any_name_is_refused_in_one_line(name: str, scheme: str) -> None:
    if scheme in ("https://", "s3://"):
        name = f"127.0.0.1:9/{name}" if scheme == "https://" else f"{name}:"  # no request leaves this machine
    with pytest.raises(VipeDagError) as caught:
        open_source(f"{scheme}{name}/no such file/x").digest  # noqa: B018
    assert "\n" not in str(caught.value).replace(name, "")


def test_a_name_of_ten_thousand_characters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(str(tmp_path / ("a" * 10_000 + ".mp4")))


# Links


def test_a_link_in_a_store_does_not_lead_out_of_it(tmp_path: Path) -> None:
    outside = VideoStore(tmp_path / "outside")
    write_keyframes(outside, OLD, 1.0)
    store = VideoStore(tmp_path / "store")
    (tmp_path / "store" / VIDEO).mkdir(parents=True)
    (tmp_path / "store" / VIDEO / "keyframes").symlink_to(tmp_path / "outside" / VIDEO / "keyframes")
    (tmp_path / "store" / "other-00000000").symlink_to(tmp_path / "outside" / VIDEO)
    assert store.videos() == []
    for ask in (
        lambda: store.current(VIDEO, "keyframes"),
        lambda: store.current("other-00000000", "keyframes"),
        lambda: write_keyframes(store, OLD, 2.0),
    ):
        with pytest.raises(StoreError, match="a symbolic link leads out of the store"):
            ask()
    assert outside.generations(VIDEO, "keyframes")


def test_a_store_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    write_keyframes(VideoStore(tmp_path / "store"), OLD, 1.0)
    assert VideoStore(tmp_path / "disk").videos() == [VIDEO]


def test_removing_a_link_removes_the_link_alone(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "keep").touch()
    store = VideoStore(tmp_path / "store")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    store._backend.remove("link")
    assert (tmp_path / "outside" / "keep").exists()
    assert not (tmp_path / "store" / "link").is_symlink()


def test_links_among_dropped_files_are_not_taken_in(tmp_path: Path) -> None:
    inbox, store = tmp_path / "inbox", VideoStore(tmp_path / "store")
    inbox.mkdir()
    secret = write_clip(tmp_path / "secret.mp4", 4, 64, 48)
    shutil.copy(secret, inbox / "mine.mp4")
    (inbox / "yours.mp4").symlink_to(secret)
    (inbox / "again").symlink_to(inbox)
    for _ in range(2):
        ingest(store, IngestSettings(location=str(inbox)), lambda _: None)
    assert list(read_ledger(store).files) == [str(inbox / "mine.mp4")]


# Documents


def test_a_pointer_speaks_of_its_own_asset(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)
    for video_id in (VIDEO, "other-00000000"):
        write_keyframes(store, OLD, 1.0, video_id)
    shutil.copy(tmp_path / "other-00000000/keyframes/_current.json", tmp_path / VIDEO / "keyframes/_current.json")
    with pytest.raises(StoreError, match=r"not a readable pointer .it speaks of 'other-00000000/keyframes'.*materialize"):
        store.open(VIDEO, "keyframes")
    assert store.point(VIDEO, "keyframes", OLD) is not None
    assert store.open(VIDEO, "keyframes")["motion"].dtype == np.float32


def test_nothing_that_runs_code_is_read() -> None:
    forbidden = {
        "pickle.load",
        "pickle.loads",
        "torch.load",
        "joblib.load",
        "shelve.open",
        "marshal.loads",
        "yaml.unsafe_load",
        "eval",
        "exec",
    }
    for path in PACKAGES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in forbidden, path
            assert called != "yaml.load" or path.name == "strict_yaml.py", path
            if called in ("np.load", "numpy.load"):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("allow_pickle") == "False", path


# Servers


@pytest.mark.parametrize("command", [commands.ui, commands.view])
def test_a_server_listens_on_loopback_unless_told_otherwise(command: object) -> None:
    assert inspect.signature(command).parameters["host"].default == "127.0.0.1"  # type: ignore[arg-type]


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("box", True)])
def test_a_server_that_others_can_reach_says_so(host: str, warned: bool) -> None:
    screen = Console(file=StringIO(), width=200)
    warn_unless_loopback(screen, host, 3000, "can start runs")
    assert ("whoever reaches port 3000 can start runs" in screen.file.getvalue()) == warned  # type: ignore[attr-defined]
