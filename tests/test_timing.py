import itertools
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from latmod.timing import (
    Burst,
    BurstPlan,
    Reference,
    ReferenceLoad,
    Statistic,
    burst_value,
    disagreement,
    over_rounds,
    run_burst,
)

STEADY = Reference(conv_ns=1, copy_ns=1, dispatch_ns=1)


def burst_of(latencies_ns: Iterable[int], plan: BurstPlan) -> tuple[Burst, list[int]]:
    """Run a burst on a clock that only `infer` moves."""
    now = 0
    fed: list[int] = []
    latency = iter(latencies_ns)

    def infer() -> None:
        nonlocal now
        now += next(latency)

    return run_burst(infer, fed.append, plan, lambda: STEADY, lambda: None, lambda: now), fed


def test_a_steady_call_is_warmed_up_for_two_windows_and_sampled_for_the_budget() -> None:
    burst, fed = burst_of(itertools.repeat(10_000_000), BurstPlan(seconds=1.0))
    assert burst.warmup_ns == (10_000_000,) * 6
    assert sum(burst.samples_ns) == 1_000_000_000
    assert fed == list(range(len(burst.warmup_ns) + len(burst.samples_ns)))


def test_warm_up_goes_on_while_calls_get_faster() -> None:
    falling = [20_000_000 - 1_000_000 * i for i in range(12)]
    burst, _ = burst_of(itertools.chain(falling, itertools.repeat(8_000_000)), BurstPlan(seconds=5.0))
    assert len(burst.warmup_ns) > 12
    assert set(burst.samples_ns) == {8_000_000}


def test_a_slow_model_gets_one_warm_up_and_the_lower_bound_of_samples() -> None:
    burst, _ = burst_of(itertools.repeat(6_000_000_000), BurstPlan(seconds=0.5, min_samples=2))
    assert (burst.samples_ns, burst.warmup_ns) == ((6_000_000_000,) * 2, (6_000_000_000,))


def test_a_fast_model_gets_no_more_than_the_upper_bound_of_samples() -> None:
    burst, _ = burst_of(itertools.repeat(1000), BurstPlan(seconds=0.5, max_samples=40))
    assert len(burst.samples_ns) == 40


def test_a_model_slower_than_the_bound_is_given_up_after_its_first_run() -> None:
    burst, _ = burst_of(itertools.repeat(7_000_000_000), BurstPlan(seconds=0.5, max_latency_seconds=6.0))
    assert (burst.samples_ns, burst.warmup_ns) == ((), (7_000_000_000,))


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=50))
def test_statistics_lie_between_the_extremes(samples: list[int]) -> None:
    for statistic in Statistic:
        assert min(samples) * (1 - 1e-12) <= burst_value(tuple(samples), statistic) <= max(samples) * (1 + 1e-12)


def test_rounds_are_reduced_as_the_statistic_says() -> None:
    rounds = (1.0, 2.0, 6.0)
    assert over_rounds(rounds, Statistic.MEDIAN_OF_MINIMA) == 2.0
    assert over_rounds(rounds, Statistic.MEAN) == 3.0
    assert over_rounds(rounds, Statistic.MIN) == 1.0
    assert over_rounds(rounds, Statistic.P90) == 2.0


def test_the_disagreement_is_the_change_of_conv_or_half_that_of_copy() -> None:
    before = Reference(conv_ns=100, copy_ns=200, dispatch_ns=100)
    assert disagreement(before, Reference(conv_ns=103, copy_ns=220, dispatch_ns=300)) == (220 / 200 - 1) / 2
    assert disagreement(before, Reference(conv_ns=94, copy_ns=200, dispatch_ns=100)) == 1 - 94 / 100
    assert disagreement(before, before) == 0


def test_the_reference_load_takes_time_in_every_part() -> None:
    found = ReferenceLoad().measure()
    assert min(found.conv_ns, found.copy_ns, found.dispatch_ns, found.probe_ns) > 0


def quiet_burst(
    latencies_ns: Iterable[int], probes_ns: Iterable[int], plan: BurstPlan, waiting_ns: int = 100_000_000
) -> Burst:
    """Run a burst on a clock that `infer` moves by its latency and each probe by `waiting_ns`."""
    now = 0
    latency, probe = iter(latencies_ns), iter(probes_ns)

    def infer() -> None:
        nonlocal now
        now += next(latency)

    def look() -> int:
        nonlocal now
        now += waiting_ns
        return next(probe)

    return run_burst(infer, lambda index: None, plan, lambda: STEADY, lambda: None, lambda: now, look)


def test_a_burst_with_patience_starts_its_samples_in_quiet() -> None:
    probes = itertools.chain([150, 150, 150], itertools.repeat(100))
    plan = BurstPlan(seconds=0.1, patience_seconds=10.0, quiet_ns=100)
    burst = quiet_burst(itertools.repeat(50_000_000), probes, plan)
    assert burst.samples_ns == (50_000_000,) * 2
    assert burst.probes_ns == (100, 100)


def test_a_burst_with_patience_goes_on_until_one_sample_has_quiet_on_both_sides() -> None:
    # Each sample is preceded by a quiet probe; only the fourth is followed by one.
    probes = itertools.chain([100, 150] * 3, itertools.repeat(100))
    plan = BurstPlan(seconds=0.05, patience_seconds=10.0, quiet_ns=100)
    burst = quiet_burst(itertools.repeat(50_000_000), probes, plan)
    assert burst.probes_ns == (150, 150, 150, 100)


def test_patience_ends_and_then_samples_are_taken_as_it_is() -> None:
    plan = BurstPlan(seconds=0.05, patience_seconds=1.0, quiet_ns=100, min_samples=3)
    burst = quiet_burst(itertools.repeat(50_000_000), itertools.repeat(150), plan)
    assert burst.samples_ns == (50_000_000,) * 3
    assert burst.probes_ns == (150,) * 3


def test_without_patience_nobody_looks() -> None:
    burst = quiet_burst(itertools.repeat(50_000_000), [], BurstPlan(seconds=0.1))
    assert len(burst.samples_ns) == 2
    assert burst.probes_ns == ()
