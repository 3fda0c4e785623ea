import math

import pytest

from latmod.dataset import Measurement
from latmod.sessions import Sessions, effects


def burst(started: str) -> Measurement:
    return Measurement(model="m", runtime="r", round=0, status="ok", started=started)


def test_a_gap_of_more_than_two_hours_begins_a_session() -> None:
    times = ["2026-11-25T21:00:00+00:00", "2026-11-25T22:55:00+00:00", "2026-11-26T01:00:00+00:00"]
    bursts = [burst(time) for time in times]
    sessions = Sessions(reversed(bursts))
    assert [sessions.of(one) for one in bursts] == [0, 0, 1]
    assert sessions.of(burst("")) == 0


def test_effects_are_told_by_networks_that_were_measured_in_all_sessions() -> None:
    logs = [{0: size, 1: size + 0.1, 2: size + 0.2} for size in (1.0, 5.0, 9.0)]
    one_sided = {0: 3.0}
    found = effects([*logs, one_sided])
    assert found == pytest.approx({0: -0.1, 1: 0.0, 2: 0.1})
    assert math.isclose(sum(found.values()), 0.0, abs_tol=1e-12)


def test_one_session_or_too_few_networks_have_no_effect() -> None:
    assert effects([{0: 1.0}, {0: 2.0}, {0: 3.0}]) == {}
    assert effects([{0: 1.0, 1: 1.1}, {0: 2.0}, {1: 3.0}]) == {}
