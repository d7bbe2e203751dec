"""Credentials in a URL are refused wherever a URL is taken, and said nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipe_dag import cli
from vipe_dag.config import load_config
from vipe_dag.documents import read_document
from vipe_dag.errors import ConfigError, VipeDagError
from vipe_dag.operations import load_operations
from vipe_dag.placement import CONFIG_VARIABLE
from vipe_dag.store import VideoStore
from vipe_dag.urls import public, redacted, refuse_credentials
from vipe_dag.video import open_source

SECRET = "wJalr/XUtnFEMI+K7MDENG"
WITH_CREDENTIALS = [
    f"s3://AKIA:{SECRET}@bucket/clip.mp4",
    f"s3://AKIA:{SECRET.replace('/', '%2F')}@bucket/clip.mp4",
    f"https://me:{SECRET}@example.org/clip.mp4",
    f"https://{SECRET.replace('/', '')}@example.org/clip.mp4",
    f"https://example.org/clip.mp4?X-Amz-Signature={SECRET}&X-Amz-Date=1",
    f"https://example.org/clip.mp4?token={SECRET}",
    f"https://example.org/clip.mp4?t=1&api_key={SECRET}",
    f"https://example.org/clip.mp4?sp=r&sig={SECRET}",
    f"https://example.org/clip.mp4?q={SECRET}0815",
    f"simplecache::s3://AKIA:{SECRET}@bucket/clip.mp4",
    f"zip://a.mp4::https://me:{SECRET}@example.org/clips.zip",
    f"s3://bucket/clip.mp4?X-Amz-Security-Token={SECRET}",
]
WITHOUT = [
    "/videos/a@b:c.mp4",
    "s3://bucket/me@home/clip #1?.mp4",
    "s3://bucket/me:you@home.mp4",
    "https://example.org:8080/a@2x.mp4?take=3&v=dQw4w9WgXcQ",
    "http://[::1]:80/clip.mp4",
    "memory://x",
    "gs://bucket/prefix",
]

PLACES: dict[str, Callable[[str], object]] = {
    "source": open_source,
    "store": VideoStore,
    "document": read_document,
    "configuration": lambda url: load_config(file=url),
    "settings": load_operations,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("url", WITH_CREDENTIALS)
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str, place: str) -> None:
    with pytest.raises(VipeDagError, match="the URL carries credentials.*by the environment") as caught:
        PLACES[place](url)
    said = str(caught.value)
    assert not [piece for piece in SECRET.split("/") if piece in said]
    assert "\n" not in said
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", WITH_CREDENTIALS[:1])
def test_neither_the_screen_nor_json_repeats_it(url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", url, "--store", str(tmp_path / "store"), "--json"]) == 1
    assert not [piece for piece in SECRET.split("/") if piece in "".join(capfd.readouterr())]


@pytest.mark.parametrize("url", WITHOUT)
def test_other_urls_are_taken_as_they_are(url: str) -> None:
    refuse_credentials(url, ConfigError)
    assert public(url) == (url.partition("?")[0] if url.startswith("http") else url)


def test_a_configuration_named_by_the_environment_is_no_way_round(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, WITH_CREDENTIALS[0])
    assert cli.main(["status", "--store", "memory://empty"]) == 2
    assert "MDENG" not in "".join(capfd.readouterr())


def test_what_a_library_says_loses_users_and_queries() -> None:
    said = redacted("403, url='https://me:pw@example.org/a.mp4?X-Amz-Signature=abc', see http://proxy:pw@10.0.0.1:8080")
    assert said == "403, url='https://example.org/a.mp4', see http://10.0.0.1:8080"


@given(st.text(max_size=60), st.sampled_from(["s3", "https", "memory"]))
def test_any_text_is_made_public_without_an_exception(text: str, scheme: str) -> None:
    public(f"{scheme}://{text}")


@pytest.mark.parametrize("password", ["a/b", "/b", "#x", "?x", "a?b#c", "a:b", "p::q", "::", "ü~ ", "1234567/x", "a@b"])
@pytest.mark.parametrize("scheme", ["s3", "https"])
def test_whatever_the_password_it_is_not_shown(password: str, scheme: str) -> None:
    assert public(f"{scheme}://user:{password}@host/clip.mp4") == f"{scheme}://host/clip.mp4"
