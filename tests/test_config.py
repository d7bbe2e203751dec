"""Configuration: presets, files and overrides give one frozen model; every mistake gets a sentence that names the valid neighbour."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from vipe_dag.config import PipelineConfig, StageConfig, field_info, field_names, load_config, presets
from vipe_dag.config_words import expected
from vipe_dag.errors import ConfigError
from vipe_dag.strict_yaml import parse

ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


class TestLayers:
    def test_no_arguments_give_the_defaults_of_the_models(self) -> None:
        assert load_config() == PipelineConfig()

    @pytest.mark.parametrize("name", presets())
    def test_every_preset_loads(self, name: str) -> None:
        assert isinstance(load_config(name), PipelineConfig)

    def test_presets_that_ship(self) -> None:
        assert {"default", "fast", "quality"} <= set(presets())

    def test_presets_order_by_resolution(self) -> None:
        assert load_config("fast").frames.long_side < load_config().frames.long_side < load_config("quality").frames.long_side

    def test_the_file_replaces_single_values_of_the_preset(self, file: Path) -> None:
        file.write_text("frames:\n  profile: reference\n")
        assert load_config("fast", file=file).frames == load_config("fast").frames.model_copy(update={"profile": "reference"})

    def test_overrides_replace_the_file_and_the_last_one_wins(self, file: Path) -> None:
        file.write_text("frames:\n  long_side: 100\n")
        assert load_config(overrides=["frames.long_side=200", "frames.long_side=300"], file=file).frames.long_side == 300

    def test_the_file_may_name_its_preset(self, file: Path) -> None:
        file.write_text("preset: quality\n")
        assert load_config(file=file) == load_config("quality")

    def test_a_preset_asked_for_replaces_the_one_the_file_names(self, file: Path) -> None:
        file.write_text("preset: quality\n")
        assert load_config("fast", file=file) == load_config("fast")

    @pytest.mark.parametrize("text", ["", "# nothing yet\n", "frames:\n"])
    def test_an_empty_file_or_section_changes_nothing(self, file: Path, text: str) -> None:
        file.write_text(text)
        assert load_config(file=file) == load_config()

    def test_a_file_may_be_a_url(self) -> None:
        import fsspec

        with fsspec.open("memory://configs/config.yaml", "wt") as stream:
            stream.write("frames: {long_side: 333}\n")
        assert load_config(file="memory://configs/config.yaml").frames.long_side == 333


class TestMistakes:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("frames.longside=640", r"frames\.longside: unknown field \(--set\); did you mean frames\.long_side\?"),
            ("keyframes.long_side=640", r"did you mean frames\.long_side\?"),
            ("frame.long_side=640", r"frame: unknown stage \(--set\); did you mean frames\?"),
            ("long_side=640", r"expected stage\.field=value; did you mean frames\.long_side\?"),
            ("frames.long_side", r"expected stage\.field=value"),
            ("=3", r"expected stage\.field=value"),
            ("frames.long_side=3", r"frames\.long_side: expected integer from 64 to 8192, got 3 \(--set\)"),
            ("frames.long_side=many", r"expected integer from 64 to 8192, got 'many'"),
            ("frames.long_side=640.5", r"expected integer from 64 to 8192, got 640\.5"),
            ("frames.long_side=true", r"expected integer from 64 to 8192, got True"),
            ("frames.long_side=", r"expected integer from 64 to 8192, got None"),
            ("frames.profile=jx", r"frames\.profile: expected one of 'jxl', 'reference', got 'jx'"),
            ("frames.profile=[", r"--set frames\.profile=\[: not valid YAML"),
        ],
    )
    def test_an_override(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_config(overrides=[override])

    @pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
    def test_no_number_may_be_nan_or_infinite(self, value: str) -> None:
        for name in field_names():
            if field_info(name).annotation in (int, float):
                with pytest.raises(ConfigError, match=rf"{name}: expected"):
                    load_config(overrides=[f"{name}={value}"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("frmes:\n  long_side: 640\n", r"frmes: unknown stage \(.*config\.yaml\); did you mean frames\?"),
            ("frames:\n  long_side: 3\n", r"got 3 \(.*config\.yaml\)"),
            ("frames: 640\n", r"frames: expected a mapping of its fields"),
            ("frames: {640: 1}\n", r"frames\.640: unknown field \(.*config\.yaml\)"),
            ("- frames\n", r"expected a mapping of stages"),
            ("frames: {long_side: 640, long_side: 641}\n", r"the key 'long_side' is given twice"),
            ("preset: qualty\n", r"unknown preset 'qualty'; did you mean quality\?; there are: .*default"),
            ("preset: 3\n", r"preset must be the name of a preset"),
            ("frames: !!python/object:os.system {}\n", r"not valid YAML"),
        ],
    )
    def test_a_file(self, file: Path, text: str, message: str) -> None:
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(file=file)

    def test_a_missing_file_is_named(self, file: Path) -> None:
        with pytest.raises(ConfigError, match=r"config\.yaml: no such configuration file"):
            load_config(file=file)

    def test_a_missing_url_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"memory://configs/absent\.yaml: no such configuration file"):
            load_config(file="memory://configs/absent.yaml")

    def test_all_mistakes_are_told_at_once(self) -> None:
        with pytest.raises(ConfigError, match=r"long_side.*; .*profile"):
            load_config(overrides=["frames.long_side=3", "frames.profile=raw"])


class TestModels:
    def test_a_configuration_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            load_config().frames.long_side = 100  # type: ignore[misc]

    @pytest.mark.parametrize("name", field_names())
    def test_every_field_says_what_it_does_in_a_sentence(self, name: str) -> None:
        description = field_info(name).description or ""
        assert description.endswith(".")
        assert "|" not in description, "would break the table of the reference"

    @pytest.mark.parametrize("name", field_names())
    def test_every_number_is_bounded_on_both_sides(self, name: str) -> None:
        words = expected(field_info(name)).rpartition("each ")[2]
        if "number" in words or "integer" in words:
            assert " to " in words or " and " in words, f"{name} takes {words}"

    def test_bounds_in_words(self) -> None:
        class Example(StageConfig):
            share: float = Field(0.5, gt=0, le=1)
            ratio: float = Field(0.5, ge=0, lt=1)
            limit: int | None = Field(None, ge=1)
            kind: Literal["a", "b"] = "a"
            scales: tuple[Annotated[float, Field(gt=0, le=9)], ...] = Field((1.0,), min_length=1, max_length=4)
            gaps: tuple[int, ...] = Field((), max_length=4)
            names: tuple[str, ...] = ()
            flag: bool = False

        words = {name: expected(field) for name, field in Example.model_fields.items()}
        assert words == {
            "share": "number above 0 and at most 1",
            "ratio": "number from 0 and below 1",
            "limit": "integer or null from 1",
            "kind": "one of 'a', 'b'",
            "scales": "list of 1 to 4, each a number above 0 and at most 9",
            "gaps": "list of at most 4, each an integer",
            "names": "list, each a text",
            "flag": "true or false",
        }

    def test_a_list_becomes_a_tuple(self) -> None:
        assert parse("[1, [2, 3]]", "here") == (1, (2, 3))


class TestScalars:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("1e-3", 1e-3), ("1.", 1.0), (".5", 0.5), ("-2E+2", -200.0), ("7", 7), ("true", True), ("null", None), ("~", None)],
    )
    def test_numbers_and_constants(self, text: str, value: object) -> None:
        parsed = parse(text, "here")
        assert parsed == value
        assert type(parsed) is type(value)

    @pytest.mark.parametrize("text", ["on", "yes", "010", "0x10", "1:30", "1_000", "2024-01-01"])
    def test_what_older_yaml_would_reinterpret_stays_text(self, text: str) -> None:
        assert parse(text, "here") == text


def reference_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_reference_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference_generator().render(), "run `make docs`"


def test_the_reference_names_every_field() -> None:
    text = reference_generator().render()
    assert all(f"| `{name.partition('.')[2]}` |" in text for name in field_names())
