"""Camera calibration: one record, the sidecar file that gives it, and what a photo's metadata suggests."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vipe_dag.config_words import in_words, shown
from vipe_dag.errors import SourceError
from vipe_dag.results import PARAM_NAMES

if TYPE_CHECKING:
    from vipe_dag.video.records import SourceInfo, VideoSource

MAX_SIDE = 2**20
MAX_FAULTS = 5
CAMERA_MODELS = ("pinhole", "brown", "fisheye")
SIDECAR_SUFFIX = ".intrinsics.json"

METADATA_FOCAL_STD = 0.05
"""Relative standard deviation of a focal length from EXIF. FocalLengthIn35mmFilm is rounded to whole millimetres (2 % at 26 mm), and
makers disagree whether the diagonal (CIPA DCG-001) or the width is the equivalent (4 % on a 4:3 picture)."""

_FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
_MODEL_NAMES = {
    "pinhole": "pinhole",
    "none": "pinhole",
    "none (rectified)": "pinhole",
    "rectified": "pinhole",
    "brown": "brown",
    "opencv": "brown",
    "radtan": "brown",
    "plumb_bob": "brown",
    "fisheye": "fisheye",
    "opencv_fisheye": "fisheye",
    "equidistant": "fisheye",
    "kannala_brandt": "fisheye",
}
_COEFFICIENTS = {"pinhole": 0, "brown": 5, "fisheye": 4}
_ASPECT_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class Calibration:
    """A camera at one resolution.

    camera_model: `pinhole`, `brown` (OpenCV k1 k2 p1 p2 k3) or `fisheye` (Kannala-Brandt; the slots k1 k2 p1 p2 hold k1..k4, k3 is 0).
    params (9,) float64 in the order of PARAM_NAMES, focal lengths and principal point in pixels, pixel centres at integers.
    Raises SourceError for an unknown model, a wrong length, and values that are not finite or not a camera.
    """

    camera_model: str
    params: NDArray[np.float64]
    width: int
    height: int

    def __post_init__(self) -> None:
        params = np.array(self.params, dtype=np.float64)
        if self.camera_model not in CAMERA_MODELS or params.shape != (len(PARAM_NAMES),):
            raise SourceError(
                f"calibration: expected one of {', '.join(CAMERA_MODELS)} with {len(PARAM_NAMES)} parameters, "
                f"got {self.camera_model!r} with shape {params.shape}"
            )
        fault = _fault(params, self.width, self.height)
        if fault:
            raise SourceError(f"calibration: {fault}")
        params.setflags(write=False)
        object.__setattr__(self, "params", params)

    def scaled(self, width: int, height: int) -> Calibration:
        """The same camera for the picture resized to width x height: c -> s * (c + 0.5) - 0.5 with s per axis; distortion is unchanged."""
        sx, sy = width / self.width, height / self.height
        fx, fy, cx, cy = self.params[:4]
        head = [fx * sx, fy * sy, sx * (cx + 0.5) - 0.5, sy * (cy + 0.5) - 0.5]
        return Calibration(self.camera_model, np.array([*head, *self.params[4:]]), width, height)

    def to_json(self) -> dict[str, Any]:
        """The layout of a sidecar file: fx fy cx cy, width, height, model, distortion (as many coefficients as the model has)."""
        named = dict(zip(PARAM_NAMES, self.params.tolist(), strict=True))
        distortion = list(named.values())[4 : 4 + _COEFFICIENTS[self.camera_model]]
        head = {key: named[key] for key in PARAM_NAMES[:4]}
        return {**head, "width": self.width, "height": self.height, "model": self.camera_model, "distortion": distortion}

    @classmethod
    def from_json(cls, content: object, origin: str, width: int | None = None, height: int | None = None) -> Calibration:
        """Read the layout of a sidecar. width, height: of the source, used where the content has none. `origin` names it in errors.

        Raises SourceError: missing, NaN, negative or implausible values, an unknown model, coefficients that contradict the model.
        """
        try:
            parsed = _Sidecar.model_validate(content)
        except ValidationError as error:
            raise SourceError(
                f"{origin}: {'; '.join(_sentence(fault) for fault in error.errors(include_url=False)[:MAX_FAULTS])}"
            ) from error
        width, height = parsed.width or width, parsed.height or height
        if width is None or height is None:
            raise SourceError(f"{origin}: width and height are missing; give the resolution that fx fy cx cy refer to")
        model, distortion = parsed.lens()
        params = np.array([parsed.fx, parsed.fy, parsed.cx, parsed.cy, *distortion], dtype=np.float64)
        fault = _fault(params, width, height)
        if fault:
            raise SourceError(f"{origin}: {fault}; give pixels at the source resolution")
        return cls(model, params, width, height)

    @property
    def digest(self) -> str:
        """32 hex digits that change with any value."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


class _Sidecar(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float
    width: int | None = Field(None, gt=0, le=MAX_SIDE)
    height: int | None = Field(None, gt=0, le=MAX_SIDE)
    model: str = "pinhole"
    distortion_model: str | None = None
    distortion: tuple[float, ...] = ()
    comment: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> _Sidecar:
        self.lens()
        return self

    def lens(self) -> tuple[str, list[float]]:
        """The camera model and the five distortion slots. A pinhole with coefficients and no word on them means OpenCV's."""
        named = [_model_name(name) for name in (self.model, self.distortion_model) if name is not None]
        curved = {name for name in named if name != "pinhole"}
        if len(curved) > 1:
            raise ValueError(f"model {shown(self.model)} contradicts distortion_model {shown(self.distortion_model)}")
        model = curved.pop() if curved else "pinhole"
        bent = any(self.distortion)
        if bent and model == "pinhole":
            if self.distortion_model is not None:
                raise ValueError(
                    f"distortion_model {shown(self.distortion_model)} contradicts the coefficients {shown(list(self.distortion))}"
                )
            model = "brown"
        if any(self.distortion[_COEFFICIENTS[model] :]):
            raise ValueError(f"distortion has {len(self.distortion)} coefficients, but {model} takes {_COEFFICIENTS[model]}")
        slots = list(self.distortion[: _COEFFICIENTS[model]])
        return model, slots + [0.0] * (5 - len(slots))


def find_sidecar(uri: str) -> str | None:
    """The calibration file beside a source: NAME.intrinsics.json next to NAME.mp4, or next to (or, as rgb.intrinsics.json, in) a folder.

    A plain intrinsics.json is not taken: a dataset's reference values are not the user's wish. Raises SourceError.
    """
    from vipe_dag.video.location import Location
    from vipe_dag.video.sources import sidecar_stems

    place = Location.of(uri)
    for stem in sidecar_stems(place):
        candidate = place.at(stem + SIDECAR_SUFFIX)
        if candidate.exists():
            return candidate.uri
    return None


def load_calibration(uri: str, info: SourceInfo) -> Calibration:
    """Read a calibration file (path or URL) for a source, at the source's resolution.

    A file that names another resolution of the same aspect is scaled. Raises SourceError: unreadable, not JSON, not a camera, other aspect.
    """
    from vipe_dag.video.location import Location

    place = Location.of(uri)
    try:
        content = json.loads(place.read_text())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place}: not JSON ({error}); expected an object with fx, fy, cx, cy") from error
    if not isinstance(content, dict):
        raise SourceError(f"{place}: expected a JSON object with fx, fy, cx, cy, found {type(content).__name__}")
    calibration = Calibration.from_json(content, str(place), info.width, info.height)
    if abs(calibration.width * info.height / (calibration.height * info.width) - 1) > _ASPECT_TOLERANCE:
        raise SourceError(
            f"{place}: made for {calibration.width}x{calibration.height}, but the upright source is {info.width}x{info.height}; "
            "give a calibration of the same aspect, with rotation applied"
        )
    return calibration.scaled(info.width, info.height)


def metadata_calibration(source: VideoSource) -> Calibration | None:
    """A pinhole from EXIF FocalLengthIn35mmFilm, at source resolution, for a folder of photos that agree on it; None where there is none.

    focal = f35 * diagonal in pixels / 43.27 mm (CIPA DCG-001); relative standard deviation METADATA_FOCAL_STD. Raises SourceError.
    """
    from vipe_dag.video.images import ImageFolder

    if not isinstance(source, ImageFolder):
        return None
    focal_mm = source.focal_35mm()
    if focal_mm is None:
        return None
    info = source.probe()
    focal = focal_mm * math.hypot(info.width, info.height) / _FULL_FRAME_DIAGONAL_MM
    centre = ((info.width - 1) / 2, (info.height - 1) / 2)
    return Calibration("pinhole", np.array([focal, focal, *centre, 0, 0, 0, 0, 0], dtype=np.float64), info.width, info.height)


def _model_name(name: str) -> str:
    try:
        return _MODEL_NAMES[name.strip().lower()]
    except KeyError:
        raise ValueError(f"unknown camera model {shown(name)}; known: {', '.join(sorted(_MODEL_NAMES))}") from None


def _fault(params: NDArray[np.float64], width: int, height: int) -> str | None:
    fx, fy, cx, cy = (float(value) for value in params[:4])
    if not np.isfinite(params).all():
        return "parameters must be finite"
    if width < 1 or height < 1:
        return f"resolution {width}x{height} is empty"
    if min(fx, fy) <= 0:
        return f"focal lengths must be positive, got fx {fx:g}, fy {fy:g}"
    if not all(0.01 < focal / side < 1000 for focal, side in ((fx, width), (fy, height))):
        return f"focal lengths fx {fx:g}, fy {fy:g} are not those of a {width}x{height} picture in pixels"
    if not (-0.5 * width <= cx <= 1.5 * width and -0.5 * height <= cy <= 1.5 * height):
        return f"principal point ({cx:g}, {cy:g}) lies far outside the {width}x{height} picture"
    return None


def _sentence(detail: Any) -> str:
    key = in_words(".".join(str(part) for part in detail["loc"])) or "sidecar"
    if detail["type"] == "missing":
        return f"{key} is missing"
    if detail["type"] == "extra_forbidden":
        return f"{key} is not a known key (known: {', '.join(_Sidecar.model_fields)})"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    return f"{key} = {shown(detail['input'])}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
