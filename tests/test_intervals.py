import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmod.intervals import Widths, doubt_of, fit_widths

COUNT = 4000
DOUBT = 0.03
ALIKE = np.full(COUNT, DOUBT)


def errors(seed: int, steps: tuple[float, ...], slope: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log errors, latencies and groups of networks, errors of 3 % at 10 ms in the first group."""
    rng = np.random.default_rng(seed)
    latency_ns = np.exp(rng.uniform(np.log(1e6), np.log(1e8), COUNT))
    groups = rng.integers(0, len(steps), COUNT)
    scale = 0.03 * (latency_ns / 1e7) ** slope * np.array(steps)[groups]
    return rng.laplace(0.0, scale), latency_ns, groups


def test_errors_that_fall_with_latency_and_grow_with_what_is_unseen_are_followed() -> None:
    missed, latency_ns, groups = errors(1, (1.0, 1.5, 2.0, 6.0), -0.25)
    widths = fit_widths(missed, latency_ns, groups.tolist(), ALIKE, coverage=0.9, noise=0.0)
    assert widths.slope == pytest.approx(-0.25, abs=0.05)
    assert np.array(widths.quantiles) / widths.quantiles[0] == pytest.approx([1.0, 1.5, 2.0, 6.0], rel=0.15)
    shares = ((0.0, 0.0), (0.1, 0.0), (0.5, 0.0), (0.5, 0.05))
    fresh, latency_ns, groups = errors(2, (1.0, 1.5, 2.0, 6.0), -0.25)
    halves = np.array([widths.of(ns, *shares[group], DOUBT) for ns, group in zip(latency_ns, groups, strict=True)])
    small = latency_ns < 3e6
    for some in (small, ~small, groups == 0, groups == 3):
        assert np.mean(np.abs(fresh[some]) <= halves[some]) == pytest.approx(0.9, abs=0.03)


def test_nothing_shrinks_with_what_is_unseen_or_grows_with_latency() -> None:
    missed, latency_ns, groups = errors(3, (2.0, 1.0, 1.0, 0.5), 0.2)
    widths = fit_widths(missed, latency_ns, groups.tolist(), ALIKE, coverage=0.9, noise=0.0)
    assert list(widths.quantiles) == sorted(widths.quantiles)
    assert widths.slope == 0.0


def test_errors_that_grow_with_doubt_are_followed() -> None:
    rng = np.random.default_rng(7)
    missed, latency_ns, groups = errors(7, (1.0,), 0.0)
    doubts = np.exp(rng.uniform(np.log(0.01), np.log(0.2), COUNT))
    widths = fit_widths(missed * (doubts / DOUBT) ** 0.7, latency_ns, groups.tolist(), doubts, coverage=0.9, noise=0.0)
    assert widths.doubt_slope == pytest.approx(0.7, abs=0.07)
    fresh, latency_ns, _ = errors(8, (1.0,), 0.0)
    halves = np.array([widths.of(ns, 0.0, 0.0, doubt) for ns, doubt in zip(latency_ns, doubts, strict=True)])
    for some in (doubts < 0.03, doubts > 0.1):
        covered = np.abs(fresh * (doubts / DOUBT) ** 0.7)[some] <= halves[some]
        assert np.mean(covered) == pytest.approx(0.9, abs=0.03)


def test_certainty_about_what_is_wrong_narrows_nothing() -> None:
    missed, latency_ns, groups = errors(9, (1.0,), 0.0)
    widths = fit_widths(missed, latency_ns, groups.tolist(), 1e-3 / np.abs(missed), coverage=0.9, noise=0.0)
    assert widths.doubt_slope == 0.0
    assert widths.of(1e7, 0.0, 0.0, 0.9) == widths.of(1e7, 0.0, 0.0, 0.0)


def test_doubt_is_that_of_kernels_by_their_time() -> None:
    assert doubt_of(np.array([3e6, 1e6]), np.array([0.02, 0.1])) == pytest.approx(0.04)
    assert doubt_of(np.array([]), np.array([])) == 0.0


def test_of_a_group_that_was_hardly_seen_nothing_is_known() -> None:
    missed, latency_ns, groups = errors(4, (1.0, 1.0), 0.0)
    widths = fit_widths(missed, latency_ns, groups.tolist(), ALIKE, coverage=0.9, noise=0.0)
    assert widths.quantiles[2] == pytest.approx(2.0 * widths.quantiles[1])
    assert widths.quantiles[3] == pytest.approx(2.0 * widths.quantiles[2])


@given(st.floats(1.0, 1e12), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_beyond_the_range_a_width_stays(latency_ns: float, unseen: float, never: float) -> None:
    widths = Widths(quantiles=(0.1, 0.2, 0.3, 0.6), slope=-0.3, range_ns=(1e6, 1e8))
    assert widths.of(1e8, unseen, never, DOUBT) <= widths.of(latency_ns, unseen, never, DOUBT)
    assert widths.of(latency_ns, unseen, never, DOUBT) <= widths.of(1e6, unseen, never, DOUBT)


def test_a_few_of_the_next_group_do_not_widen_the_one_before() -> None:
    missed, latency_ns, groups = errors(6, (1.0, 1.0, 1.0), 0.0)
    missed[:7], groups[:7] = 3.0, 3
    alone, beside = (
        fit_widths(missed[first:], latency_ns[first:], groups[first:].tolist(), ALIKE[first:], coverage=0.9, noise=0.0)
        for first in (7, 0)
    )
    assert beside.quantiles == pytest.approx(alone.quantiles, rel=0.01)


def test_what_rounds_scatter_by_comes_to_it_at_any_size() -> None:
    missed, latency_ns, groups = errors(5, (1.0,), -0.25)
    plain, wide = (
        fit_widths(missed, latency_ns, groups.tolist(), ALIKE, coverage=0.9, noise=own) for own in (0.0, 0.03)
    )
    for ns in (1e6, 1e7, 1e8):
        assert wide.of(ns, 0.0, 0.0, DOUBT) ** 2 == pytest.approx(
            plain.of(ns, 0.0, 0.0, DOUBT) ** 2 + (1.6449 * 0.03) ** 2
        )


def test_a_predictor_of_three_groups_takes_the_last_for_what_was_never_measured() -> None:
    assert Widths(quantiles=(0.1, 0.2, 0.3)).of(5e6, 0.1, 0.1, DOUBT) == 0.3


def test_a_network_of_what_was_never_measured_is_as_doubtful_as_its_price() -> None:
    """Errors of networks that had a tenth of it say nothing about one that has nothing else."""
    widths = Widths(quantiles=(0.1, 0.1, 0.1, 0.1))
    assert widths.of(5e6, 0.1, 0.1, DOUBT) == pytest.approx(0.1)
    assert widths.of(5e6, 1.0, 1.0, DOUBT) == pytest.approx(np.log(4.0))
