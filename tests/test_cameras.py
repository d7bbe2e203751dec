"""Camera models against OpenCV, autograd and themselves."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vipe_kernels import cameras

EUROC = (458.654, 457.296, 367.215, 248.375, -0.28340811, 0.07395907, 0.00019359, 1.76187114e-05, 0.0)
CAMERAS = {
    "pinhole": (500.0, 510.0, 320.5, 240.25, 0.0, 0.0, 0.0, 0.0, 0.0),
    "brown": (500.0, 510.0, 320.5, 240.25, -0.2, 0.05, 0.001, -0.002, 0.003),
    "fisheye": (350.0, 345.0, 320.5, 240.25, -0.01, 0.02, -0.015, 0.002, 0.0),
}
MODELS = list(CAMERAS)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


def camera(model: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(CAMERAS[model], dtype=dtype)


def points_in_view(count: int = 200, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Points within 40 degrees of the axis, 0.5 to 20 deep, the first one on the axis."""
    generator = torch.Generator().manual_seed(1)
    xy = (torch.rand(count, 2, generator=generator, dtype=dtype) - 0.5) * 1.2
    z = 0.5 + 19.5 * torch.rand(count, 1, generator=generator, dtype=dtype)
    xy[0] = 0
    return torch.cat((xy * z, z), -1)


def opencv(params: torch.Tensor, model: str) -> tuple[np.ndarray, np.ndarray]:
    fx, fy, cx, cy, *distortion = params.tolist()
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.array(distortion[:4] if model == "fisheye" else distortion)


def jacobian(function, argument: torch.Tensor) -> torch.Tensor:
    """d function(argument) / d argument by autograd, for functions that treat rows independently: (n, out, in)."""
    rows = argument.clone().requires_grad_()
    out = function(rows)
    return torch.stack([torch.autograd.grad(out[:, i].sum(), rows, retain_graph=True)[0] for i in range(out.shape[1])], 1)


class TestProject:
    def test_equals_opencv(self, model):
        points, params = points_in_view(), camera(model)
        matrix, distortion = opencv(params, model)
        if model == "fisheye":
            expected = cv2.fisheye.projectPoints(points.numpy()[:, None], np.zeros(3), np.zeros(3), matrix, distortion)[0][:, 0]
        else:
            expected = cv2.projectPoints(points.numpy(), np.zeros(3), np.zeros(3), matrix, distortion)[0][:, 0]
        np.testing.assert_allclose(cameras.project(points, params, model), expected, atol=1e-9)

    def test_point_on_the_axis_lands_on_the_principal_point(self, model):
        params = camera(model)
        uv = cameras.project(torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64), params, model)
        torch.testing.assert_close(uv, params[2:4])

    def test_jacobians_equal_autograd(self, model):
        points, params = points_in_view(), camera(model)
        uv, d_point, d_params = cameras.project_with_jacobian(points, params, model)
        torch.testing.assert_close(uv, cameras.project(points, params, model))
        torch.testing.assert_close(d_point, jacobian(lambda p: cameras.project(p, params, model), points), atol=1e-8, rtol=1e-8)
        per_point = params.expand(len(points), 9)
        expected = jacobian(lambda p: cameras.project(points, p, model), per_point)
        torch.testing.assert_close(d_params, expected, atol=1e-8, rtol=1e-8)

    @pytest.mark.parametrize("columns", [(), (0,), (4, 0), (8, 7, 6, 5), (2, 3)])
    def test_chosen_columns_equal_those_of_the_full_jacobian(self, model, columns):
        points, params = points_in_view(5), camera(model)
        full = cameras.project_with_jacobian(points, params, model)[2]
        chosen = cameras.project_with_jacobian(points, params, model, columns)[2]
        torch.testing.assert_close(chosen, full[..., list(columns)])

    @pytest.mark.parametrize("point", [(1.0, 2.0, -1.0), (0.0, 0.0, 0.0), (1e6, -1e6, 0.0), (5.0, 5.0, 1e-12), (0.0, 0.0, -2.0)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_points_not_in_front_give_finite_pixels_and_gradients(self, model, point, dtype):
        points = torch.tensor([point], dtype=dtype, requires_grad=True)
        params = camera(model, dtype).requires_grad_()
        uv, d_point, d_params = cameras.project_with_jacobian(points, params, model)
        gradients = torch.autograd.grad(uv.sum(), (points, params))
        for tensor in (uv, d_point, d_params, *gradients):
            assert tensor.isfinite().all()

    def test_leading_dimensions_broadcast(self, model):
        points = points_in_view(12).view(3, 4, 3)
        two = torch.stack((camera(model), camera(model) * 1.1))[:, None, None]
        uv, d_point, d_params = cameras.project_with_jacobian(points, two, model)
        assert (uv.shape, d_point.shape, d_params.shape) == ((2, 3, 4, 2), (2, 3, 4, 2, 3), (2, 3, 4, 2, 9))
        torch.testing.assert_close(uv[1], cameras.project(points, two[1, 0, 0], model))
        ray, d_ray = cameras.unproject_with_jacobian(uv, two, model)
        assert (ray.shape, d_ray.shape) == ((2, 3, 4, 3), (2, 3, 4, 2, 9))

    def test_float32_points_stay_float32(self, model):
        uv, d_point, d_params = cameras.project_with_jacobian(points_in_view(dtype=torch.float32), camera(model), model)
        assert {uv.dtype, d_point.dtype, d_params.dtype, cameras.unproject(uv, camera(model), model).dtype} == {torch.float32}

    def test_unknown_model_is_refused_by_name(self):
        with pytest.raises(ValueError, match="'mei' is unknown; it must be one of pinhole, brown, fisheye"):
            cameras.project(points_in_view(), camera("brown"), "mei")


class TestUnproject:
    @settings(max_examples=50, deadline=None)
    @given(
        name=st.sampled_from(MODELS),
        x=st.floats(-0.6, 0.6),
        y=st.floats(-0.6, 0.6),
        z=st.floats(0.01, 1e3),
    )
    def test_is_the_inverse_of_project(self, name, x, y, z):
        ray = torch.tensor([x, y, 1.0], dtype=torch.float64)
        back, valid = cameras.unproject_valid(cameras.project(ray * z, camera(name), name), camera(name), name)
        torch.testing.assert_close(back, ray, atol=1e-9, rtol=0)
        assert valid

    def test_equals_opencv_over_a_whole_euroc_image(self):
        params = torch.tensor(EUROC, dtype=torch.float64)
        v, u = torch.meshgrid(torch.arange(0, 480.0, 16), torch.arange(0, 752.0, 16), indexing="ij")
        uv = torch.stack((u, v), -1).double().reshape(-1, 2)
        ray, valid = cameras.unproject_valid(uv, params, "brown")
        matrix, distortion = opencv(params, "brown")
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-14)
        expected = cv2.undistortPointsIter(uv.numpy()[:, None], matrix, distortion, None, None, criteria)[:, 0]
        assert valid.all()
        np.testing.assert_allclose(ray[:, :2], expected, atol=1e-8)

    def test_equals_opencv_fisheye(self):
        uv = cameras.project(points_in_view(), camera("fisheye"), "fisheye")
        matrix, distortion = opencv(camera("fisheye"), "fisheye")
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-12)
        expected = cv2.fisheye.undistortPoints(uv.numpy()[:, None], matrix, distortion, criteria=criteria)[:, 0]
        np.testing.assert_allclose(cameras.unproject(uv, camera("fisheye"), "fisheye")[:, :2], expected, atol=1e-8)

    def test_jacobian_equals_autograd_and_finite_differences(self, model):
        uv, params = cameras.project(points_in_view(), camera(model), model), camera(model)
        ray, d_params = cameras.unproject_with_jacobian(uv, params, model)
        per_pixel = params.expand(len(uv), 9)
        by_autograd = jacobian(lambda p: cameras.unproject(uv, p, model)[:, :2], per_pixel)
        step = 1e-6
        differences = [
            (cameras.unproject(uv, params + step * unit, model) - cameras.unproject(uv, params - step * unit, model))[:, :2] / (2 * step)
            for unit in torch.eye(9, dtype=torch.float64)
        ]
        torch.testing.assert_close(d_params, by_autograd, atol=1e-9, rtol=1e-8)
        torch.testing.assert_close(d_params, torch.stack(differences, -1), atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(ray, cameras.unproject(uv, params, model))

    def test_chosen_columns_equal_those_of_the_full_jacobian(self, model):
        uv = cameras.project(points_in_view(5), camera(model), model)
        full = cameras.unproject_with_jacobian(uv, camera(model), model)[1]
        torch.testing.assert_close(cameras.unproject_with_jacobian(uv, camera(model), model, (5, 0))[1], full[..., [5, 0]])

    @pytest.mark.parametrize(
        ("name", "distortion"),
        [("brown", (-0.3, 0.0, 0.0, 0.0, 0.0)), ("brown", (-0.2, 0.02, 0.01, -0.01, -0.01)), ("fisheye", (-0.3, 0, 0, 0, 0))],
    )
    def test_pixels_past_the_fold_are_invalid_and_finite(self, name, distortion):
        params = torch.tensor((100.0, 100.0, 0.0, 0.0, *distortion), dtype=torch.float64)
        radius = torch.linspace(0, 400, 200, dtype=torch.float64)
        uv = torch.stack((radius, 0.3 * radius), -1)
        ray, valid = cameras.unproject_valid(uv, params, name)
        assert ray.isfinite().all()
        assert cameras.unproject_with_jacobian(uv, params, name)[1].isfinite().all()
        assert valid[0]
        assert not valid[-1]
        assert (valid[1:] <= valid[:-1]).all()  # one border, no islands
        torch.testing.assert_close(cameras.project(ray[valid], params, name), uv[valid], atol=1e-2, rtol=0)

    def test_every_pixel_of_a_pinhole_is_valid(self):
        assert cameras.unproject_valid(torch.full((3, 2), 1e5), camera("pinhole"), "pinhole")[1].all()


class TestInView:
    def test_points_behind_the_camera_are_not(self, model):
        points = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        assert cameras.in_view(points, camera(model), model).tolist() == [True, False, False]

    def test_points_that_fold_back_into_the_image_are_not(self):
        params = torch.tensor((100.0, 100.0, 0.0, 0.0, -0.3, 0.0, 0.0, 0.0, 0.0), dtype=torch.float64)
        wide = torch.tensor([[1.8, 0.0, 1.0]], dtype=torch.float64)
        assert cameras.project(wide, params, "brown")[0, 0] < 10  # far outside the field of view, yet near the centre
        assert not cameras.in_view(wide, params, "brown").any()

    def test_fold_radius_of_one_radial_term_is_known_in_closed_form(self):
        params = torch.tensor((1.0, 1.0, 0.0, 0.0, -0.3, 0.0, 0.0, 0.0, 0.0), dtype=torch.float64)
        assert cameras.fold_radius(params, "brown").item() == pytest.approx((1 / 0.9) ** 0.5)

    def test_no_fold_where_the_polynomial_always_grows(self):
        assert cameras.fold_radius(torch.tensor(EUROC, dtype=torch.float64), "brown").isinf()
        assert cameras.fold_radius(camera("pinhole"), "pinhole").isinf()


class TestScaleParams:
    def test_image_corners_stay_image_corners(self, model):
        """The outer corner (-0.5, -0.5) of a 640 x 480 image is that of the 160 x 120 one; the opposite one too."""
        scaled = cameras.scale_params(camera(model), 0.25, 0.25)
        for corner, expected in (((-0.5, -0.5), (-0.5, -0.5)), ((639.5, 479.5), (159.5, 119.5))):
            ray = cameras.unproject(torch.tensor(corner, dtype=torch.float64), camera(model), model)
            torch.testing.assert_close(cameras.project(ray, scaled, model), torch.tensor(expected, dtype=torch.float64))

    def test_axes_scale_independently_and_back(self):
        scaled = cameras.scale_params(camera("brown"), 0.5, 0.25)
        assert scaled[:4].tolist() == pytest.approx([250.0, 127.5, 160.0, 59.6875])
        torch.testing.assert_close(cameras.scale_params(scaled, 2, 4), camera("brown"))
