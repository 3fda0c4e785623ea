import pytest

from latmod.dataset import Measurement
from latmod.drift import fit_correction
from latmod.faults import fault_ns, faults_per_run, without_faults
from latmod.machine import Disturbance
from latmod.timing import Reference

STATE = Reference(conv_ns=2_800_000, copy_ns=7_400_000, dispatch_ns=1_000_000, probe_ns=10_000)
RUN_NS, COST_NS, PAGES = 500_000_000, 1_700, 100_000


def burst(number: int, faults: int, *, model: str = "wide", runtime: str = "torch", samples: int = 3) -> Measurement:
    """Return a burst whose every run takes what its page faults take, beside what it always does."""
    return Measurement(
        model=model,
        runtime=runtime,
        round=number,
        status="ok",
        samples_ns=(RUN_NS + COST_NS * faults,) * samples,
        before=STATE,
        after=STATE,
        disturbance=Disturbance(
            wall_ns=0, cpu_ns=0, steal_ns=0, throttled_ns=0, involuntary_switches=0, page_faults=faults * samples,
            load1=0.0, mhz=0.0,
        ),
    )  # fmt: skip


def test_faults_are_counted_by_run() -> None:
    assert faults_per_run(burst(0, PAGES)) == PAGES
    assert faults_per_run(Measurement(model="m", runtime="r", round=0, status="ok", samples_ns=(1,))) == 0.0


def test_what_a_fault_takes_is_learnt_from_networks_that_ran_with_and_without() -> None:
    rounds = [burst(0, PAGES), burst(1, 0), burst(2, PAGES)]
    assert fault_ns("torch", rounds) == pytest.approx(COST_NS)
    assert fault_ns("onnxruntime", rounds) == 0.0


def test_where_no_network_did_both_nothing_is_known_and_nothing_taken_off() -> None:
    always = [burst(number, PAGES) for number in range(3)]
    few = [burst(number, 1_000 * number) for number in range(3)]
    assert fault_ns("torch", always) == fault_ns("torch", few) == 0.0
    assert without_faults(always, {}) == always


def test_bursts_with_faults_come_out_as_those_without() -> None:
    rounds = [burst(0, PAGES), burst(1, 0), *(burst(number, PAGES, model="wider") for number in range(2))]
    cleaned = without_faults(rounds, {"torch": fault_ns("torch", rounds)})
    assert [one.samples_ns[0] for one in cleaned] == pytest.approx([RUN_NS] * 4, rel=1e-6)


def test_at_most_half_of_a_sample_is_taken_off() -> None:
    (cleaned,) = without_faults([burst(0, PAGES)], {"torch": 1e9})
    assert cleaned.samples_ns[0] == pytest.approx((RUN_NS + COST_NS * PAGES) / 2)


def test_the_correction_holds_what_a_fault_takes() -> None:
    rounds = [burst(number, PAGES * (number % 2)) for number in range(4)]
    assert fit_correction("torch", rounds, STATE).fault_ns == pytest.approx(COST_NS)
