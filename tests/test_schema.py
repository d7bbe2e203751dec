"""The schema is the data contract: names, dimensions, dtypes and attributes, and sentences about what breaks them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from vipe_dag.errors import StoreError
from vipe_dag.graph import STAGES
from vipe_dag.results import PARAM_NAMES, BaPoses, FrameBlock, Intrinsics, Keyframes
from vipe_dag.schema import ASSETS, FIXED_SIZES, FLAGS, Found, asset_schema, problems, value_problems

EVERY = [(schema, variable) for schema in ASSETS.values() for variable in schema.variables]
IDS = [f"{schema.name}-{variable.name}" for schema, variable in EVERY]


def complete(asset: str, sizes: dict[str, int] | None = None) -> tuple[dict[str, Found], dict[str, Any]]:
    """Facts and attributes that satisfy the schema, every free dimension 5 long unless sizes says otherwise."""
    lengths = {**FIXED_SIZES, **(sizes or {})}
    found = {v.name: Found(v.dims, tuple(lengths.get(dim, 5) for dim in v.dims), v.dtype) for v in ASSETS[asset].variables}
    examples: dict[type, Any] = {str: "x", int: 1, float: 1.0, bool: True, list: ["static"], dict: {"1": "x"}}
    attrs = {a.name: a.choices[0] if a.choices else examples[a.types[0]] for a in ASSETS[asset].attributes}
    return found, attrs


def test_every_stage_of_the_graph_is_a_stored_asset() -> None:
    assert list(ASSETS) == [stage.name for stage in STAGES]


@pytest.mark.parametrize(
    ("asset", "record"), [("frames", FrameBlock), ("keyframes", Keyframes), ("intrinsics", Intrinsics), ("ba_poses", BaPoses)]
)
def test_every_field_of_a_result_has_a_place(asset: str, record: type) -> None:
    places = {v.name for v in ASSETS[asset].variables} | {a.name for a in ASSETS[asset].attributes}
    renamed = {"index": "frame", "residual_px_median": "residual_px"}
    assert {renamed.get(f.name, f.name) for f in fields(record)} <= places


@pytest.mark.parametrize(("schema", "variable"), EVERY, ids=IDS)
def test_every_variable_is_described(schema: Any, variable: Any) -> None:
    attributes = variable.attributes()
    assert attributes["long_name"]
    assert variable.units is not None or variable.extra or variable.constant
    assert len(set(variable.dims)) == len(variable.dims)


@pytest.mark.parametrize(("schema", "variable"), EVERY, ids=IDS)
def test_images_are_sharded_and_small_arrays_are_not(schema: Any, variable: Any) -> None:
    assert variable.sharded == (variable.dims[:3] == ("frame", "y", "x"))


def test_matrices_say_what_they_map_and_in_which_axes() -> None:
    cam2world = ASSETS["ba_poses"].variable("cam2world", "")
    assert (cam2world.dtype, cam2world.attributes()["matrix"]) == ("float64", "cam2world")
    assert cam2world.attributes()["axes"] == "x right, y down, z forward"


def test_unknown_depth_is_the_fill_value() -> None:
    assert np.isnan(ASSETS["dense_depth"].variable("z_depth", "").fill_value)
    assert ASSETS["dense_depth"].variable("measured", "").fill_value is False


def test_parameter_names_are_stored_with_the_parameters() -> None:
    assert all(ASSETS[asset].variable("param", "").constant == PARAM_NAMES for asset in ("intrinsics", "ba_poses"))


@pytest.mark.parametrize("asset", ASSETS)
def test_what_satisfies_the_schema_has_no_problems(asset: str) -> None:
    assert problems(ASSETS[asset], *complete(asset)) == []


@pytest.mark.parametrize(("schema", "variable"), EVERY, ids=IDS)
def test_a_missing_variable_is_named_unless_it_is_optional(schema: Any, variable: Any) -> None:
    found, attrs = complete(schema.name)
    del found[variable.name]
    expected = [f"{variable.name}: expected {variable.dtype} {variable.dims}, found nothing"] if variable.required else []
    assert problems(schema, found, attrs) == expected


def test_pixels_may_be_absent_only_from_profile_reference() -> None:
    found, attrs = complete("frames")
    del found["rgb"]
    assert problems(ASSETS["frames"], found, {**attrs, "profile": "reference"}) == []
    assert problems(ASSETS["frames"], found, {**attrs, "profile": "jxl"}) != []


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (Found(("frame",), (5,), "float64"), "motion: expected dtype float32, found float64"),
        (Found(("row",), (5,), "float32"), "motion: expected dimensions ('frame',), found ('row',) of shape (5,)"),
        (Found(("frame",), (5, 1), "float32"), "motion: expected dimensions ('frame',), found ('frame',) of shape (5, 1)"),
    ],
)
def test_a_deviation_is_said_as_expected_and_found(facts: Found, sentence: str) -> None:
    found, attrs = complete("keyframes")
    assert sentence in problems(ASSETS["keyframes"], {**found, "motion": facts}, attrs)


def test_fixed_dimensions_have_their_size() -> None:
    found, attrs = complete("intrinsics")
    found["params"] = Found(("param",), (8,), "float64")
    assert problems(ASSETS["intrinsics"], found, attrs) == ["params: expected 9 along param (as in the schema), found 8"]


def test_no_rows_is_a_problem() -> None:
    found, attrs = complete("dense_depth", {"frame": 0})
    assert "z_depth: expected at least one row along frame, found none" in problems(ASSETS["dense_depth"], found, attrs)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("camera_model", "fish", "attribute camera_model: expected one of pinhole, brown, fisheye, found 'fish'"),
        ("iterations", True, "attribute iterations: expected int, found True"),
        ("residual_px", "big", "attribute residual_px: expected float, found 'big'"),
        ("flags", "static", "attribute flags: expected list, found 'static'"),
    ],
)
def test_a_wrong_attribute_is_said_as_expected_and_found(name: str, value: Any, sentence: str) -> None:
    found, attrs = complete("ba_poses")
    assert problems(ASSETS["ba_poses"], found, {**attrs, name: value}) == [sentence]


@pytest.mark.parametrize("value", [1, 0.5, "NaN", "Infinity"])
def test_a_float_attribute_may_be_an_integer_or_not_finite(value: Any) -> None:
    found, attrs = complete("ba_poses")
    assert problems(ASSETS["ba_poses"], found, {**attrs, "residual_px": value}) == []


def test_flags_are_words_of_the_contract() -> None:
    found, attrs = complete("keyframes")
    assert problems(ASSETS["keyframes"], found, {**attrs, "flags": sorted(FLAGS)}) == []
    assert "found ['sunny']" in problems(ASSETS["keyframes"], found, {**attrs, "flags": ["sunny"]})[0]


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("frame", np.array([3, 3]), "frame: expected strictly increasing values, found 3 then 3 at rows 0, 1"),
        ("time", np.array([0.0, np.nan]), "time: expected finite values, found 1 that are not"),
        ("keyframe", np.array([0, 9]), "keyframe: expected rows 0 to 4, found 0 to 9"),
    ],
)
def test_labels_are_ordered_and_in_range(name: str, values: np.ndarray, sentence: str) -> None:
    assert sentence in value_problems({"motion": np.zeros(5), name: values})


@pytest.mark.parametrize(
    ("dtype", "given", "refused"),
    [
        ("float16", np.float32, False),
        ("float64", np.float32, False),
        ("int64", np.int32, False),
        ("int32", np.int64, True),
        ("int32", np.float64, True),
        ("bool", np.uint8, True),
        ("uint8", np.float32, True),
    ],
)
def test_only_floats_may_lose_precision(dtype: str, given: Any, refused: bool) -> None:
    variable = next(v for _, v in EVERY if v.dtype == dtype)
    if refused:
        with pytest.raises(StoreError, match=f"here: {variable.name} must be {dtype}, found {np.dtype(given)}"):
            variable.cast(np.zeros(2, given), "here")
    else:
        assert variable.cast(np.zeros(2, given), "here").dtype == dtype


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(StoreError, match="did you mean dense_depth"):
        asset_schema("dens_depth")
    with pytest.raises(StoreError, match="here: no variable 'z_dept' in the schema; did you mean z_depth"):
        ASSETS["dense_depth"].variable("z_dept", "here")
