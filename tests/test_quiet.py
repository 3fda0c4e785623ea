import itertools

from hypothesis import given
from hypothesis import strategies as st

from latmod.quiet import Probe, QuietLevels, SharedCores, is_quiet, quiet_level, undisturbed, wait_for_quiet

Bursts = st.lists(
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**5)), max_size=8).map(
        lambda pairs: (tuple(sample for sample, _ in pairs), tuple(probe for _, probe in pairs))
    ),
    max_size=5,
)


def test_a_probe_takes_some_time_but_little() -> None:
    assert 1_000 < Probe().measure() < 50_000_000


def test_the_level_is_what_the_quiet_bursts_took() -> None:
    assert quiet_level([]) == 0
    assert quiet_level([20_000] * 50 + [30_000] * 50) == 20_000
    # One reading of the clock that is too fast does not set it.
    assert quiet_level([20_000] * 99 + [5_000]) == 20_000
    # A core that ran faster for a while is not what the others are disturbed against.
    assert quiet_level([9_000] * 20 + [9_900, 10_500] * 40) == 9_900


def test_the_level_is_that_of_the_few_where_a_neighbour_slowed_most() -> None:
    assert quiet_level([14_500] * 19 + [19_800] * 54 + [25_000] * 27) == 14_500
    # Too few to tell from a clock that was read wrongly.
    assert quiet_level([14_500] * 5 + [19_800] * 54 + [25_000] * 27) == 19_800


def test_a_runtime_that_saw_no_quiet_takes_the_level_of_all() -> None:
    levels = QuietLevels()
    assert levels.level("torch") == 0
    for _ in range(60):
        levels.add("torch", (14_500, 20_000))
    for _ in range(40):
        levels.add("mnn", (17_400,))
        levels.add("tract", (15_000,))
    assert [levels.level(name) for name in ("torch", "mnn", "tract", "ncnn")] == [14_500, 14_500, 15_000, 14_500]


def test_shared_cores_are_told_of_while_it_goes_on() -> None:
    cores = SharedCores()
    assert not any(cores.see(probes, 100) for probes in [(), (100, 150), (101,)] * 40)
    told = [line for probes in [(150, 160), (100,)] * 40 if (line := cores.see(probes, 100))]
    assert len(told) == 2
    assert all("20 of the last 40" in line for line in told)


def test_a_tenth_above_the_level_is_quiet_and_a_fifth_is_not() -> None:
    assert is_quiet(22_000, 20_000)
    assert not is_quiet(24_000, 20_000)


def test_only_samples_with_quiet_on_both_sides_count() -> None:
    bursts = [((10, 12, 11), (100, 150, 101)), ((13,), (140,))]
    assert undisturbed(bursts, 100) == ([(10, 11), ()], True)


def test_all_samples_count_where_none_was_quiet_or_nobody_looked() -> None:
    assert undisturbed([((10, 12), (150, 151)), ((13,), (140,))], 100) == ([(10, 12), (13,)], False)
    assert undisturbed([((10, 12), ())], 0) == ([(10, 12)], True)


@given(Bursts, st.integers(1, 10**5))
def test_nothing_is_made_up_and_nothing_is_lost_without_a_better(
    bursts: list[tuple[tuple[int, ...], tuple[int, ...]]], level_ns: int
) -> None:
    found, quiet = undisturbed(bursts, level_ns)
    assert len(found) == len(bursts)
    assert all(set(some) <= set(samples) for some, (samples, _) in zip(found, bursts, strict=True))
    assert any(found) == any(samples for samples, _ in bursts)
    if not quiet:
        assert found == [samples for samples, _ in bursts]


def test_waiting_ends_with_the_first_quiet_probe() -> None:
    probes = iter([150, 150, 100, 100])
    wait_for_quiet(lambda: next(probes), 60.0, 100)
    assert list(probes) == [100]


def test_waiting_ends_when_the_patience_does() -> None:
    calls = itertools.count()

    def never() -> int:
        next(calls)
        return 150

    wait_for_quiet(never, 0.0, 100)
    assert next(calls) == 1
