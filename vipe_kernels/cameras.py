"""Camera models: points to pixels and back, with analytic Jacobians.

A camera is a model name and one parameter vector, whose slots are the same for every model::

    fx fy cx cy k1 k2 p1 p2 k3          pixels for the first four, the rest without unit

| model     | distortion of the normalised point (x, y) = (X/Z, Y/Z)                                  |
|-----------|-----------------------------------------------------------------------------------------|
| `pinhole` | none; the last five slots are not read                                                  |
| `brown`   | OpenCV: radial k1 k2 k3, tangential p1 p2                                               |
| `fisheye` | OpenCV `cv2.fisheye` (Kannala-Brandt): its k1 k2 k3 k4 sit in slots k1 k2 p1 p2; k3 unread |

Axes are OpenCV's (x right, y down, z forward); the centre of the top left pixel is (0, 0).
Every function broadcasts the leading dimensions of its tensors (so `params` of a batch of K cameras against points (K, P, 3) is
`params[:, None]`), computes in the dtype and on the device of its first argument, and can be differentiated by autograd.

Depths below `NEAR` are raised to it, and normalised coordinates of distorted models are held within `NORMALISED_LIMIT` (89.4 degrees off
the axis), so that a point behind the camera gives a finite pixel and finite derivatives, both without meaning: mask with `in_view`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from vipe_kernels import formulas

CameraModel = Literal["pinhole", "brown", "fisheye"]
MODELS: tuple[str, ...] = get_args(CameraModel)
PARAM_NAMES = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3")
ALL_COLUMNS = tuple(range(len(PARAM_NAMES)))

NEAR = 1e-4
NORMALISED_LIMIT = 100.0
NEWTON_ITERATIONS = 8
RESIDUAL_TOLERANCE_PX = 0.01  # an inverse that reprojects farther than this from its pixel is not valid
MIN_DETERMINANT = 1e-3  # Newton steps are shortened where the distortion is about to fold
TINY = 1e-18  # added to a squared radius: harmless above 1e-9, and the square root keeps a finite derivative at the centre

# (distorted x, distorted y) or, with derivatives, those followed by dxd/dx, dxd/dy = dyd/dx, dyd/dy
_Columns = tuple[Tensor, ...]


def project(points: Tensor, params: Tensor, model: str) -> Tensor:
    """Pixels (..., 2) of points (..., 3) in the camera frame, for params (..., 9)."""
    _check_model(model)
    params = params.to(points)
    x, y, _ = _normalise(points, model)
    if model != "pinhole":
        x, y = _DISTORT[model](x, y, params)
    return torch.stack((x * params[..., 0] + params[..., 2], y * params[..., 1] + params[..., 3]), -1)


def project_with_jacobian(
    points: Tensor, params: Tensor, model: str, columns: Sequence[int] = ALL_COLUMNS
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (..., 2), d pixel / d point (..., 2, 3) and d pixel / d params[columns] (..., 2, len(columns)).

    `columns` are the parameter slots wanted, in the order wanted: an adjustment of the focal length alone pays for two, not nine.
    Where `NEAR` or `NORMALISED_LIMIT` holds a point, the Jacobians are those of the unclamped formula at the held point.
    """
    _check_model(model)
    params = params.to(points)
    fx, fy = params[..., 0], params[..., 1]
    x, y, inverse_z = _normalise(points, model)
    fx_z, fy_z = fx * inverse_z, fy * inverse_z
    zero = torch.zeros((), dtype=points.dtype, device=points.device)
    if model == "pinhole":
        xd, yd = x, y
        d_point = _matrix(((fx_z, zero, -fx_z * x), (zero, fy_z, -fy_z * y)))
    else:
        xd, yd, a, b, d = _DISTORT_WITH_DERIVATIVE[model](x, y, params)
        d_point = _matrix(((fx_z * a, fx_z * b, -fx_z * (a * x + b * y)), (fy_z * b, fy_z * d, -fy_z * (b * x + d * y))))
    one = torch.ones_like(zero)
    u_row, v_row = [xd, zero, one, zero], [zero, yd, zero, one]
    for dx, dy in _distortion_columns(x, y, model, columns):
        u_row.append(fx * dx)
        v_row.append(fy * dy)
    uv = torch.stack((xd * fx + params[..., 2], yd * fy + params[..., 3]), -1)
    return uv, d_point, _select((u_row, v_row), columns, uv.shape[:-1])


def unproject(uv: Tensor, params: Tensor, model: str) -> Tensor:
    """Rays (..., 3) with z = 1 through pixels uv (..., 2).

    Distorted models are inverted by a fixed number of Newton steps from the distorted point itself. Pixels that no ray reaches (past the
    radius where the distortion folds over, or 90 degrees off the axis) get a finite ray without meaning: see `unproject_valid`.
    """
    _check_model(model)
    x, y, _, _ = _undistort(uv, params.to(uv), model)
    return torch.stack((x, y, torch.ones_like(x)), -1)


def unproject_valid(uv: Tensor, params: Tensor, model: str) -> tuple[Tensor, Tensor]:
    """`unproject` and a bool mask (...): the ray lies before the fold of the distortion and reprojects onto its pixel."""
    ray = unproject(uv, params, model)
    if model == "pinhole":
        return ray, torch.ones(ray.shape[:-1], dtype=torch.bool, device=uv.device)
    error = (project(ray, params, model) - uv).abs().amax(-1)
    return ray, (error < RESIDUAL_TOLERANCE_PX) & in_view(ray, params, model)


def unproject_with_jacobian(uv: Tensor, params: Tensor, model: str, columns: Sequence[int] = ALL_COLUMNS) -> tuple[Tensor, Tensor]:
    """Rays (..., 3) with z = 1 and d (ray x, ray y) / d params[columns] (..., 2, len(columns)).

    The pixel held fixed, distort(ray; k) = (uv - c) / f gives, by the implicit function theorem,
    d ray = distort'^-1 (d((uv - c) / f) - d distort / dk).
    """
    _check_model(model)
    params = params.to(uv)
    fx, fy = params[..., 0], params[..., 1]
    x, y, xd, yd = _undistort(uv, params, model)
    zero = torch.zeros((), dtype=uv.dtype, device=uv.device)
    rows = [(-xd / fx, zero), (zero, -yd / fy), (-1 / fx, zero), (zero, -1 / fy)]
    rows += [(-dx, -dy) for dx, dy in _distortion_columns(x, y, model, columns)]
    if model != "pinhole":
        a, b, d = _DISTORT_WITH_DERIVATIVE[model](x, y, params)[2:]
        inverse_determinant = 1 / (a * d - b * b).clamp_min(MIN_DETERMINANT)
        a, b, d = a * inverse_determinant, b * inverse_determinant, d * inverse_determinant
        rows = [(d * rx - b * ry, a * ry - b * rx) if i in columns else (zero, zero) for i, (rx, ry) in enumerate(rows)]
    ray = torch.stack((x, y, torch.ones_like(x)), -1)
    return ray, _select(tuple(zip(*rows, strict=True)), columns, x.shape)


def in_view(points: Tensor, params: Tensor, model: str) -> Tensor:
    """Bool mask (...): points farther than `NEAR` that the model projects one to one.

    Past the radius where a distortion polynomial stops growing, points far outside the field of view fold back into the image.
    """
    _check_model(model)
    z = points[..., 2]
    in_front = z > NEAR
    if model == "pinhole":
        return in_front
    radius = fold_radius(params.to(points), model).clamp_max(NORMALISED_LIMIT)
    return in_front & (torch.hypot(points[..., 0], points[..., 1]) < radius * z)


def fold_radius(params: Tensor, model: str) -> Tensor:
    """Largest normalised radius |(X/Z, Y/Z)| (...) up to which the radial distortion grows; inf where it always does.

    For the fisheye model the polynomial is in the angle, so the result is the tangent of the angle, inf from 90 degrees.
    The tangential terms are not considered. Not differentiable.
    """
    _check_model(model)
    slots = {"pinhole": (), "brown": (4, 5, 8), "fisheye": (4, 5, 6, 7)}[model]
    if not slots:
        return torch.full_like(params[..., 0], torch.inf)
    # r (1 + k1 r^2 + k2 r^4 + ..) has slope 1 + 3 k1 s + 5 k2 s^2 + .. with s = r^2. In w = 1/s that is monic, w^n + 3 k1 w^(n-1) + ..,
    # whatever coefficients vanish, so its roots are eigenvalues of a companion matrix; the smallest s is the largest w.
    coefficients = params.detach()[..., list(slots)].to("cpu", torch.float64)
    n = len(slots)
    companion = torch.diag(torch.ones(n - 1, dtype=torch.float64), -1).expand(*coefficients.shape[:-1], n, n).clone()
    companion[..., 0, :] = -coefficients * torch.arange(3, 2 * n + 3, 2, dtype=torch.float64)
    roots = torch.linalg.eigvals(companion)
    real = (roots.imag.abs() <= 1e-7 * roots.abs()) & (roots.real > 1e-12)
    radius = torch.where(real, roots.real, torch.zeros_like(roots.real)).amax(-1).rsqrt()
    if model == "fisheye":
        radius = torch.where(radius < torch.pi / 2, torch.tan(radius), torch.inf)
    return radius.to(params)


def scale_params(params: Tensor, sx: float, sy: float) -> Tensor:
    """Parameters (..., 9) of the same camera after its image is resized by sx horizontally and sy vertically.

    Pixel centres are at integers, so the image spans [-0.5, width - 0.5] and a coordinate moves as c -> s (c + 0.5) - 0.5.
    """
    gain = params.new_tensor([sx, sy, sx, sy, 1, 1, 1, 1, 1])
    offset = params.new_tensor([0, 0, 0.5 * (sx - 1), 0.5 * (sy - 1), 0, 0, 0, 0, 0])
    return params * gain + offset


def _check_model(model: str) -> None:
    if model not in MODELS:
        raise ValueError(f"camera model {model!r} is unknown; it must be one of {', '.join(MODELS)}")


def _normalise(points: Tensor, model: str) -> tuple[Tensor, Tensor, Tensor]:
    inverse_z = points[..., 2].clamp_min(NEAR).reciprocal()
    x, y = points[..., 0] * inverse_z, points[..., 1] * inverse_z
    if model != "pinhole":
        x, y = x.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT), y.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT)
    return x, y, inverse_z


def _brown(x: Tensor, y: Tensor, params: Tensor) -> _Columns:
    """Position of `formulas.brown`, without the derivative."""
    k1, k2, p1, p2, k3 = params[..., 4:].unbind(-1)
    r2 = x * x + y * y
    factor = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)) + 2 * (p1 * y + p2 * x)
    return x * factor + p2 * r2, y * factor + p1 * r2


def _brown_with_derivative(x: Tensor, y: Tensor, params: Tensor) -> _Columns:
    return formulas.brown(x, y, *params[..., 4:].unbind(-1))


def _fisheye(x: Tensor, y: Tensor, params: Tensor) -> _Columns:
    """Position of `formulas.fisheye`, without the derivative."""
    r = (x * x + y * y + TINY).sqrt()
    scale = _fisheye_angle(torch.atan(r), params)[0] / r
    return x * scale, y * scale


def _fisheye_with_derivative(x: Tensor, y: Tensor, params: Tensor) -> _Columns:
    r = (x * x + y * y + TINY).sqrt()
    return formulas.fisheye(x, y, r, *_fisheye_angle(torch.atan(r), params))


def _fisheye_angle(theta: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Distorted angle and its derivative by the angle."""
    return formulas.fisheye_angle(theta, *params[..., 4:8].unbind(-1))


_DISTORT: dict[str, Callable[[Tensor, Tensor, Tensor], _Columns]] = {"brown": _brown, "fisheye": _fisheye}
_DISTORT_WITH_DERIVATIVE: dict[str, Callable[[Tensor, Tensor, Tensor], _Columns]] = {
    "brown": _brown_with_derivative,
    "fisheye": _fisheye_with_derivative,
}


def _distortion_columns(x: Tensor, y: Tensor, model: str, columns: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """d (distorted x, distorted y) by slots 4 to 8; zeros for slots that are not in `columns` or not read by the model."""
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    result = [(zero, zero)] * 5
    if model == "pinhole" or not any(column >= 4 for column in columns):
        return result
    r2 = x * x + y * y
    if model == "brown":
        radial = {4: 1, 5: 2, 8: 3}
        for slot in set(columns) & set(radial):
            power = r2 ** radial[slot]
            result[slot - 4] = (x * power, y * power)
        if 6 in columns:
            result[2] = (2 * x * y, r2 + 2 * y * y)
        if 7 in columns:
            result[3] = (r2 + 2 * x * x, 2 * x * y)
    else:
        r = (r2 + TINY).sqrt()
        theta = torch.atan(r)
        for slot in set(columns) & {4, 5, 6, 7}:
            power = theta ** (2 * slot - 5) / r
            result[slot - 4] = (x * power, y * power)
    return result


def _undistort(uv: Tensor, params: Tensor, model: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised x, y and the distorted normalised point they come from.

    All Newton steps but the last run without autograd: at the solution one step has the derivative of the inverse function.
    """
    xd = (uv[..., 0] - params[..., 2]) / params[..., 0]
    yd = (uv[..., 1] - params[..., 3]) / params[..., 1]
    if model == "pinhole":
        return xd, yd, xd, yd
    if model == "fisheye":
        return *_undistort_fisheye(xd, yd, params), xd, yd
    with torch.no_grad():
        x, y = xd.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT), yd.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT)
        for _ in range(NEWTON_ITERATIONS - 1):
            x, y = _brown_newton_step(x, y, xd, yd, params)
    return *_brown_newton_step(x, y, xd, yd, params), xd, yd


def _brown_newton_step(x: Tensor, y: Tensor, xd: Tensor, yd: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    fx, fy, a, b, d = _brown_with_derivative(x, y, params)
    ex, ey = xd - fx, yd - fy
    determinant = (a * d - b * b).clamp_min(MIN_DETERMINANT)
    x, y = x + (d * ex - b * ey) / determinant, y + (a * ey - b * ex) / determinant
    return x.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT), y.clamp(-NORMALISED_LIMIT, NORMALISED_LIMIT)


def _undistort_fisheye(xd: Tensor, yd: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    limit = float(torch.atan(torch.tensor(NORMALISED_LIMIT)))
    distorted = (xd * xd + yd * yd + TINY).sqrt()

    def step(theta: Tensor) -> Tensor:
        value, slope = _fisheye_angle(theta, params)
        return (theta + (distorted - value) / slope.clamp_min(MIN_DETERMINANT)).clamp(0.0, limit)

    with torch.no_grad():
        theta = distorted.clamp_max(limit)
        for _ in range(NEWTON_ITERATIONS - 1):
            theta = step(theta)
    scale = torch.tan(step(theta)) / distorted
    return xd * scale, yd * scale


def _matrix(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Stack rows of broadcastable tensors into (..., rows, columns)."""
    entries = torch.broadcast_tensors(*(entry for row in rows for entry in row))
    return torch.stack(entries, -1).unflatten(-1, (len(rows), len(rows[0])))


def _select(rows: Sequence[Sequence[Tensor]], columns: Sequence[int], shape: torch.Size) -> Tensor:
    """Columns of the matrix with these rows, (*shape, rows, len(columns))."""
    if not columns:
        return rows[0][0].new_zeros((*shape, len(rows), 0))
    return _matrix([[row[column].expand(shape) for column in columns] for row in rows])
