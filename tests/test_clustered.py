"""The uncertainty of a fit counts errors that measurements share, and never more than the data and the prior together say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vipe_kernels import clustered

Float = NDArray[np.float64]
NO_PRIOR = np.zeros(2)


def line(groups: int, members: int, shared: float, seed: int) -> tuple[Float, Float, NDArray[np.int64], Float]:
    """A line fitted to points of noise 1, of which `shared` is the same in a whole group: Hessian, scores, groups, and the error made."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(groups), members)
    at = rng.uniform(-1, 1, groups)[label] + 0.1 * rng.standard_normal(groups * members)
    slope = np.stack([np.ones_like(at), at], 1)
    error = np.sqrt(1 - shared) * rng.standard_normal(len(at)) + np.sqrt(shared) * rng.standard_normal(groups)[label]
    hessian = slope.T @ slope
    found = np.linalg.solve(hessian, slope.T @ error)
    return hessian, slope * (error - slope @ found)[:, None], label, found


@pytest.mark.parametrize(("groups", "shared"), [(12, 0.0), (12, 0.3), (40, 0.3), (40, 1.0)])
def test_about_nine_of_ten_errors_lie_within_two_standard_deviations(groups: int, shared: float) -> None:
    inside = []
    for seed in range(300):
        hessian, scores, label, error = line(groups, 20, shared, seed)
        std = np.sqrt(clustered.posterior_covariance(hessian, scores, (label,), 1.0, NO_PRIOR).diagonal())
        inside.append(np.abs(error) < 2 * std)
    assert (np.mean(inside, 0) > 0.88).all()


def test_the_inverse_hessian_alone_would_promise_too_much() -> None:
    inside = [abs(line(40, 20, 0.3, seed)[3][1]) < 2 * np.sqrt(np.linalg.inv(line(40, 20, 0.3, seed)[0])[1, 1]) for seed in range(300)]
    assert np.mean(inside) < 0.7


def test_independent_errors_cost_little() -> None:
    hessian, scores, label, _ = line(100, 20, 0.0, 3)
    found = clustered.posterior_covariance(hessian, scores, (label,), 1.0, NO_PRIOR)
    assert np.sqrt(found.diagonal()) == pytest.approx(np.sqrt(np.linalg.inv(hessian).diagonal()), rel=0.4)


def test_a_second_clustering_adds_what_it_finds() -> None:
    hessian, scores, label, _ = line(40, 20, 0.5, 4)
    alone = np.arange(len(label))
    one, both = (clustered.posterior_covariance(hessian, scores, which, 1.0, NO_PRIOR) for which in ((alone,), (alone, label)))
    assert (both.diagonal() > 2 * one.diagonal()).all()


@given(factor=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=2), seed=st.integers(0, 5))
@settings(max_examples=20)
def test_units_of_parameters_do_not_matter(factor: list[float], seed: int) -> None:
    hessian, scores, label, _ = line(20, 10, 0.3, seed)
    unit = np.array(factor)
    found = clustered.posterior_covariance(hessian, scores, (label,), 1.0, NO_PRIOR)
    scaled = clustered.posterior_covariance(hessian * np.outer(unit, unit), scores * unit, (label,), 1.0, NO_PRIOR)
    assert np.allclose(scaled * np.outer(unit, unit), found, rtol=1e-6, atol=1e-12)


def test_where_the_data_say_nothing_the_prior_is_returned() -> None:
    prior = np.array([0.3, 7.0])
    nothing = clustered.posterior_covariance(np.zeros((2, 2)), np.zeros((5, 2)), (np.arange(5),), 1.0, 1 / prior**2)
    assert np.sqrt(nothing.diagonal()) == pytest.approx(prior, rel=1e-6)


def test_a_prior_makes_nothing_less_certain() -> None:
    hessian, scores, label, _ = line(20, 10, 0.3, 1)
    free, held = (clustered.posterior_covariance(hessian, scores, (label,), 1.0, p).diagonal() for p in (NO_PRIOR, np.array([0.0, 1e6])))
    assert (held <= free * (1 + 1e-9)).all()
    assert held[1] == pytest.approx(1e-6, rel=0.01)


@given(count=st.integers(1, 300), length=st.integers(1, 9), at_least=st.integers(1, 20))
def test_runs_are_even_and_as_long_as_there_are_enough_of_them(count: int, length: int, at_least: int) -> None:
    label = clustered.runs(count, length, at_least)
    sizes = np.bincount(label)
    assert (np.diff(label) >= 0).all()
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) == min(count, max(at_least, count // length))
