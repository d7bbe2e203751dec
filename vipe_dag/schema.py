"""What is stored: the one home of names, dimensions, dtypes, units, codecs and attributes of every asset.

Per-frame images are chunked by one frame and sharded by SHARD_FRAMES; every other array is one chunk. Dimension names are part of the data.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipe_dag.errors import StoreError
from vipe_dag.results import PARAM_NAMES

CONVENTIONS = "CF-1.12"
SHARD_FRAMES = 32
"""Frames in one stored object: 6 to 10 MB at working resolution."""

FLAGS = frozenset(
    (
        "truncated",
        "nominal_times",
        "repaired_times",
        "damaged",
        "static",
        "no_parallax",
        "segments",
        "focal_unobservable",
        "focal_uncertain",
        "low_texture",
        "lost_frames",
        "inconsistent",
        "short",
        "depth_unknown",
    )
)
"""The words that `flags` may hold: what is wrong with a video, said as data."""

CAMERA_MODELS = ("pinhole", "brown", "fisheye")
FIXED_SIZES = {"channel": 3, "xy": 2, "world": 4, "camera": 4, "param": len(PARAM_NAMES)}
"""Dimensions of one size in every video. `world` and `camera` are the rows and columns of cam2world."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How JSON attributes hold floats that are not finite; `float` reads them."""

RESERVED_ATTRIBUTES = frozenset(("Conventions", "coordinates", "commit", "video_id", "asset"))


class Compression(Enum):
    """How a kind of array is encoded; `vipe_dag.codecs.zarr_codecs` has the codecs."""

    IMAGE = "lossless JPEG XL, one image per frame"
    LUMA = "differences along rows, zstd"
    DEPTH = "pcodec level 8"
    MASK = "blosc zstd bitshuffle"
    SMALL = "zstd"


@dataclass(frozen=True)
class Variable:
    """One array: dims in order, dtype, CF units and long_name.

    absent_when: (attribute, value) that makes it optional. constant: values that are the same in every video; the store writes them itself.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    long_name: str
    units: str | None = None
    compression: Compression = Compression.SMALL
    required: bool = True
    absent_when: tuple[str, str] | None = None
    constant: tuple[str, ...] | None = None
    extra: Mapping[str, Any] | None = None

    @property
    def sharded(self) -> bool:
        """Is it one image per frame, chunked by 1 and sharded by SHARD_FRAMES?"""
        return self.compression is not Compression.SMALL

    @property
    def fill_value(self) -> Any:
        """What a missing chunk reads as: unknown where the dtype can say so."""
        return {"f": float("nan"), "b": False, "T": ""}.get(self.kind, 0)

    @property
    def kind(self) -> str:
        """NumPy's letter for the kind of dtype; `T` for text."""
        return "T" if self.dtype == "string" else np.dtype(self.dtype).kind

    def attributes(self) -> dict[str, Any]:
        """CF attributes of the array."""
        units = {} if self.units is None else {"units": self.units}
        return {"long_name": self.long_name, **units, **(self.extra or {})}

    def cast(self, values: Any, where: str) -> NDArray[Any]:
        """The values in the stored dtype. Floats may change precision (overflow becomes inf), nothing else may. Raises StoreError."""
        array = np.asarray(values)
        if self.kind == "T":
            return array.astype(object)
        wanted = np.dtype(self.dtype)
        if array.dtype == wanted:
            return array
        if not (np.can_cast(array.dtype, wanted, "safe") or (array.dtype.kind == "f" and wanted.kind == "f")):
            raise StoreError(f"{where}: {self.name} must be {wanted}, found {array.dtype}; convert it before writing")
        with np.errstate(over="ignore"):
            return array.astype(wanted)


@dataclass(frozen=True)
class Attribute:
    """One attribute of an asset's group: the Python types its JSON value may have. A float that is not finite is stored as its name."""

    name: str
    types: tuple[type, ...]
    choices: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True)
class AssetSchema:
    """One stored asset."""

    name: str
    variables: tuple[Variable, ...]
    attributes: tuple[Attribute, ...]

    def variable(self, name: str, where: str) -> Variable:
        """The variable of that name. Raises StoreError naming the nearest one."""
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise StoreError(f"{where}: no variable {name!r} in the schema{nearest(name, [v.name for v in self.variables])}")


@dataclass(frozen=True)
class Found:
    """What was written under a variable's name."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean a, b?` or the choices there are; empty when there is nothing to choose from."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, 3, 0.5)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; there are: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else ""


_FRAME = Variable("frame", ("frame",), "int64", "index of the frame in the source video", "1")
_TIME = Variable("time", ("frame",), "float64", "presentation time in the source container", "s")
_PARAM = Variable("param", ("param",), "string", "name of the camera parameter", constant=PARAM_NAMES)
_FLAGS = Attribute("flags", (list,))
_MODEL = Attribute("camera_model", (str,), CAMERA_MODELS)
_SCALE_SOURCE = Attribute("scale_source", (str,))
_SIZE = tuple(Attribute(name, (int,)) for name in ("width", "height", "source_width", "source_height"))
_LENGTH = "1"
"""Lengths have the scale named by the attribute scale_source, which is arbitrary from one moving camera: no SI unit."""


def _optional(variable: Variable) -> Variable:
    return replace(variable, required=False)


def _params() -> tuple[Variable, ...]:
    at = {"": "working resolution", "source_": "source resolution"}
    return tuple(
        Variable(
            f"{prefix}params{suffix}",
            ("param",),
            "float64",
            f"{what}camera parameters at {size}",
            extra={"comment": "fx fy cx cy in pixel, distortion without unit"},
        )
        for prefix, size in at.items()
        for suffix, what in (("", ""), ("_std", "standard deviation of "))
    )


def _depth() -> tuple[Variable, ...]:
    image = ("frame", "y", "x")
    return (
        Variable(
            "z_depth",
            image,
            "float16",
            "depth along the optical axis; NaN = unknown",
            _LENGTH,
            Compression.DEPTH,
            extra={"axes": "x right, y down, z forward"},
        ),
        Variable("confidence", image, "uint8", "confidence of the depth, 0 none to 255 full", "1", Compression.MASK),
        Variable("measured", image, "bool", "depth was triangulated here rather than completed", "1", Compression.MASK),
    )


_FRAMES = AssetSchema(
    "frames",
    (
        _FRAME,
        _TIME,
        Variable(
            "rgb",
            ("frame", "y", "x", "channel"),
            "uint8",
            "colour at working resolution",
            "1",
            Compression.IMAGE,
            absent_when=("profile", "reference"),
            extra={"color_space": "sRGB, full range"},
        ),
        Variable(
            "luma",
            ("frame", "y", "x"),
            "uint8",
            "brightness of rgb (ITU-R BT.601)",
            "1",
            Compression.LUMA,
            required=False,
        ),
        Variable(
            "instance",
            ("frame", "y", "x"),
            "uint8",
            "number of the object in the pixel, 0 the background; only of imported results",
            "1",
            Compression.MASK,
            required=False,
        ),
    ),
    (
        *_SIZE,
        Attribute("rotation", (int,)),
        Attribute("source_uri", (str,)),
        Attribute("source_digest", (str,)),
        Attribute("codec", (str,)),
        Attribute("container", (str,)),
        Attribute("truncated", (bool,)),
        Attribute("fps_nominal", (float,)),
        Attribute("profile", (str,), ("jxl", "reference"), required=False),
        Attribute("instances", (dict,), required=False),
        _FLAGS,
    ),
)

_CELLS = ("keyframe", "flow_y", "flow_x", "xy")
_FOLLOWED = "followed through the frames between; NaN where it was not"
_KEYFRAMES = AssetSchema(
    "keyframes",
    (
        _optional(_FRAME),
        _optional(_TIME),
        Variable("keyframe", ("keyframe",), "int64", "row of the keyframe on the frame dimension", "1"),
        Variable("motion", ("frame",), "float32", "median flow since the last keyframe", "pixel"),
        Variable("segment", ("frame",), "int32", "number of the uninterrupted shot", "1"),
        Variable("sharpness", ("frame",), "float32", "variance of the Laplacian of grey levels", "1"),
        Variable("flow_to_next", _CELLS, "float16", f"mean flow of each cell of the picture to the next keyframe, {_FOLLOWED}", "pixel"),
        Variable("flow_from_next", _CELLS, "float16", f"mean flow of each cell of the next keyframe to this one, {_FOLLOWED}", "pixel"),
    ),
    (_FLAGS,),
)

_INTRINSICS = AssetSchema(
    "intrinsics",
    (
        _PARAM,
        *_params(),
        Variable("candidate_focal", ("candidate",), "float64", "focal length that a start came to, at working resolution", "pixel"),
        Variable("candidate_cost", ("candidate",), "float64", "robust cost it reached there", "1"),
    ),
    (_MODEL, Attribute("source", (str,), ("given", "metadata", "estimated")), Attribute("focal_observable", (bool,)), *_SIZE, _FLAGS),
)

_GRID = ("keyframe", "gy", "gx")
_BA_POSES = AssetSchema(
    "ba_poses",
    (
        _optional(_FRAME),
        _optional(_TIME),
        Variable(
            "cam2world",
            ("frame", "world", "camera"),
            "float64",
            "camera to world, homogeneous",
            extra={"matrix": "cam2world", "axes": "x right, y down, z forward", "comment": "lengths: see scale_source"},
        ),
        Variable("tracked", ("frame",), "bool", "the pose was estimated from this frame's pixels", "1"),
        Variable("segment", ("frame",), "int32", "number of the part that shares one world and scale", "1"),
        Variable(
            "position_std",
            ("frame",),
            "float64",
            "standard deviation of the camera position, NaN where lost",
            _LENGTH,
            extra={"comment": "after the similarity that fits the segment to the truth best: its RMS is the ATE to be expected"},
        ),
        Variable("frame_residual_px", ("frame",), "float32", "median reprojection residual of the frame", "pixel"),
        Variable("inlier_share", ("frame",), "float32", "share of correspondences that agree with the pose", "1"),
        Variable("keyframe", ("keyframe",), "int64", "row of the keyframe on the frame dimension", "1"),
        Variable("point_uv", (*_GRID, "xy"), "float32", "pixel of the grid point in its keyframe, centres at integers", "pixel"),
        Variable("inverse_depth", _GRID, "float32", "1 / depth along the optical axis at the grid point", _LENGTH),
        Variable("valid", _GRID, "bool", "the inverse depth was estimated", "1"),
        Variable("residual_px", _GRID, "float32", "reprojection residual of the grid point", "pixel"),
        _PARAM,
        *_params(),
        Variable("parallax", ("segment_id",), "bool", "the segment's translation was observable", "1"),
    ),
    (_MODEL, _SCALE_SOURCE, Attribute("residual_px", (float,)), Attribute("iterations", (int,)), _FLAGS),
)

_DENSE_DEPTH = AssetSchema("dense_depth", (_optional(_FRAME), _optional(_TIME), *_depth()), (_SCALE_SOURCE, _FLAGS))

_ALIGNED_DEPTH = AssetSchema(
    "aligned_depth",
    (
        _optional(_FRAME),
        _optional(_TIME),
        *_depth(),
        Variable("scale", ("frame",), "float64", "factor applied to inverse depth", "1"),
        Variable("shift", ("frame",), "float64", "offset added to scaled inverse depth", "1"),
        Variable("alignment_residual", ("frame",), "float32", "relative residual after alignment", "1"),
    ),
    (_SCALE_SOURCE, _FLAGS),
)

ASSETS: dict[str, AssetSchema] = {
    schema.name: schema for schema in (_FRAMES, _KEYFRAMES, _INTRINSICS, _BA_POSES, _DENSE_DEPTH, _ALIGNED_DEPTH)
}
"""The stored assets, in the order a video passes them."""

COORDINATES = ("frame", "time", "keyframe", "param")
"""Variables that label a dimension rather than measure something."""


def asset_schema(asset: str) -> AssetSchema:
    """The schema of an asset. Raises StoreError naming the nearest one."""
    if asset not in ASSETS:
        raise StoreError(f"unknown asset {asset!r}{nearest(asset, ASSETS)}")
    return ASSETS[asset]


def problems(schema: AssetSchema, found: Mapping[str, Found], attrs: Mapping[str, Any]) -> list[str]:
    """Everything in which written arrays and attributes deviate from the schema, one `expected, found` sentence each."""
    out: list[str] = []
    sizes: dict[str, tuple[int, str]] = {name: (size, "the schema") for name, size in FIXED_SIZES.items()}
    for variable in schema.variables:
        facts = found.get(variable.name)
        if facts is None:
            excused = variable.absent_when is not None and attrs.get(variable.absent_when[0]) == variable.absent_when[1]
            if variable.required and not excused:
                out.append(f"{variable.name}: expected {variable.dtype} {variable.dims}, found nothing")
            continue
        if facts.dtype != variable.dtype:
            out.append(f"{variable.name}: expected dtype {variable.dtype}, found {facts.dtype}")
        if facts.dims != variable.dims or len(facts.shape) != len(variable.dims):
            out.append(f"{variable.name}: expected dimensions {variable.dims}, found {facts.dims} of shape {facts.shape}")
            continue
        for dim, size in zip(variable.dims, facts.shape, strict=True):
            known, owner = sizes.setdefault(dim, (size, variable.name))
            if size != known:
                out.append(f"{variable.name}: expected {known} along {dim} (as in {owner}), found {size}")
            elif size == 0 and dim == "frame":
                out.append(f"{variable.name}: expected at least one row along frame, found none")
    return out + _attribute_problems(schema, attrs)


def _attribute_problems(schema: AssetSchema, attrs: Mapping[str, Any]) -> list[str]:
    out: list[str] = []
    for attribute in schema.attributes:
        words = " or ".join(t.__name__ for t in attribute.types)
        if attribute.name not in attrs:
            if attribute.required:
                out.append(f"attribute {attribute.name}: expected {words}, found nothing")
            continue
        value = attrs[attribute.name]
        if not _is_a(value, attribute.types):
            out.append(f"attribute {attribute.name}: expected {words}, found {value!r}")
        elif attribute.choices and value not in attribute.choices:
            out.append(f"attribute {attribute.name}: expected one of {', '.join(attribute.choices)}, found {value!r}")
        elif attribute.name == "flags" and not FLAGS.issuperset(value):
            out.append(f"attribute flags: expected words of {', '.join(sorted(FLAGS))}, found {value!r}")
    return out


def _is_a(value: Any, types: tuple[type, ...]) -> bool:
    if bool not in types and isinstance(value, bool):
        return False
    return isinstance(value, types) or (float in types and (isinstance(value, int) or value in NOT_FINITE))


def value_problems(small: Mapping[str, NDArray[Any]]) -> list[str]:
    """What is wrong with the values of the arrays that label dimensions: order of frame, time and keyframe, and keyframe rows in range."""
    out: list[str] = []
    for name in ("frame", "time", "keyframe"):
        values = small.get(name)
        if values is None:
            continue
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            out.append(f"{name}: expected finite values, found {int((~np.isfinite(values)).sum())} that are not")
        steps = np.diff(values)
        if not (steps > 0).all():
            row = int(np.argmin(steps > 0))
            out.append(f"{name}: expected strictly increasing values, found {values[row]} then {values[row + 1]} at rows {row}, {row + 1}")
    rows = small.get("keyframe")
    length = next((len(small[name]) for name in ("motion", "tracked") if name in small), None)
    if rows is not None and length is not None and rows.size and (rows.min() < 0 or rows.max() >= length):
        out.append(f"keyframe: expected rows 0 to {length - 1}, found {rows.min()} to {rows.max()}")
    return out
