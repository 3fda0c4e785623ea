import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from latmod.scores import conformal_quantile, noise_floor, r2, score, spearman, split_half

positive = st.floats(0.01, 1e4)
pairs = st.lists(st.tuples(positive, positive), min_size=3, max_size=40)


def split(values):
    truth, predicted = np.array(values, dtype=float).T
    return truth, predicted


@given(pairs)
def test_scores_agree_with_scikit_learn(values):
    truth, predicted = split(values)
    found = score(truth, predicted, predicted, predicted)
    assert found.mape == pytest.approx(metrics.mean_absolute_percentage_error(truth, predicted))
    if np.ptp(truth) > 1e-6 * truth.max():
        assert found.r2 == pytest.approx(metrics.r2_score(truth, predicted), rel=1e-6)
        assert found.r2_log == pytest.approx(metrics.r2_score(np.log(truth), np.log(predicted)), rel=1e-6)


@given(pairs)
def test_spearman_agrees_with_scipy_ties_included(values):
    truth, predicted = split([(round(a, 1), round(b, -1)) for a, b in values])
    if np.ptp(truth) > 0 and np.ptp(predicted) > 0:
        assert spearman(truth, predicted) == pytest.approx(stats.spearmanr(truth, predicted).statistic, abs=1e-9)


def test_scores_that_say_nothing_are_nan():
    same = np.ones(4)
    assert math.isnan(r2(same, same))
    assert math.isnan(spearman(same, same))


def test_shares_coverage_and_width():
    truth = np.array([100.0, 100.0, 100.0, 100.0])
    predicted = np.array([104.0, 92.0, 100.0, 150.0])
    found = score(truth, predicted, predicted * 0.95, predicted * 1.05)
    assert (found.within_5, found.within_10) == (0.5, 0.75)
    assert found.coverage == 0.5
    assert found.width == pytest.approx(0.10)
    assert found.median_error == pytest.approx(0.06)


@given(pairs, st.floats(0.1, 10.0))
def test_scores_do_not_depend_on_the_unit(values, factor):
    truth, predicted = split(values)
    one = score(truth, predicted, predicted, predicted)
    other = score(truth * factor, predicted * factor, predicted * factor, predicted * factor)
    assert other.mape == pytest.approx(one.mape)
    assert other.median_error == pytest.approx(one.median_error)


def test_noise_floor_is_zero_without_noise_and_close_to_theory_with_it():
    assert noise_floor([(5.0, 5.0, 5.0), (7.0, 7.0)]) == 0.0
    rng = np.random.default_rng(0)
    floor = noise_floor(np.exp(rng.normal(0.0, 0.01, (4000, 2))).tolist())
    # The difference of two rounds has a standard deviation of 1.41 %, and a median absolute value of 0.6745 of that.
    assert floor == pytest.approx(0.6745 * 0.01 * math.sqrt(2.0), rel=0.05)


def test_noise_floor_needs_two_rounds():
    assert math.isnan(noise_floor([(1.0,), ()]))


@settings(max_examples=20)
@given(st.integers(20, 200), st.integers(0, 1000))
def test_conformal_quantile_covers_at_least_what_it_says(count, seed):
    rng = np.random.default_rng(seed)
    covered = [abs(draw[-1]) <= conformal_quantile(draw[:-1], 0.9) for draw in rng.standard_t(3, (600, count + 1))]
    assert np.mean(covered) > 0.9 - 4 * math.sqrt(0.09 / 600)


def test_conformal_quantile_of_few_is_the_largest():
    assert conformal_quantile(np.array([0.1, -0.3]), 0.9) == 0.3
    assert math.isnan(conformal_quantile(np.array([]), 0.9))


def test_split_half_compares_odd_with_even_rounds() -> None:
    assert split_half((1.0, 1.1, 1.0, 1.1, 1.0)) == pytest.approx(1 - 1 / 1.1)
    assert math.isnan(split_half((5.0,)))
