from pathlib import Path

import msgspec
import pytest

from latmod.dataset import Protocol
from latmod.errors import LatmodError, SpecError
from latmod.plan import bundled_spaces, estimate, find_spaces, plan_sweep

LARGEST = """
schema = 1
family = "resnet"

[[model]]
block = "bottleneck"
blocks = [12, 32, 144, 12]
width = 192

[[model]]
block = "basic"
blocks = [1, 1, 1, 1]
width = 8
"""


def test_the_corner_of_two_billion_parameters_is_left_out_with_the_estimate_that_said_so(tmp_path: Path) -> None:
    space = tmp_path / "corner.toml"
    space.write_text(LARGEST)
    card = plan_sweep([space], ["fake"], Protocol(), name="corner", max_memory_bytes=8 << 30)
    assert card.models[0].params > 1.9e9
    assert "GiB, more than --max-memory 8.0 GiB" in card.models[0].skipped
    assert [model.params < 1e6 for model in card.planned] == [True]


def test_a_bound_of_macs_is_recorded(tmp_path: Path) -> None:
    space = tmp_path / "corner.toml"
    space.write_text(LARGEST)
    card = plan_sweep([space], ["fake"], Protocol(), name="corner", max_gmacs=100, max_memory_bytes=1 << 50)
    assert "GMACs, more than --max-gmacs 100" in card.models[0].skipped


def test_a_plan_counts_bursts_and_estimates_time(tiny_space: Path) -> None:
    card = plan_sweep([tiny_space], ["fake"], Protocol(rounds=7), name="tiny")
    plan = estimate(card)
    assert (plan.models, plan.skipped, plan.bursts) == (4, 0, 28)
    assert 0 < plan.hours < 1


def test_a_runtime_that_compiles_takes_longer_by_what_compiling_takes(tiny_space: Path) -> None:
    card = plan_sweep([tiny_space], ["fake"], Protocol(rounds=3), name="tiny")
    compiling = msgspec.structs.replace(card, runtimes={"torch-compile": "2.14"})
    # Four networks, three rounds.
    assert estimate(compiling).hours - estimate(card).hours > 12 * 10 / 3600


def test_limit_takes_a_prefix(tiny_space: Path) -> None:
    whole, part = (plan_sweep([tiny_space], ["fake"], Protocol(), name="t", limit=limit) for limit in (0, 2))
    assert part.models == whole.models[:2]


def test_the_same_model_in_two_spaces_is_measured_once(tiny_space: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_text(tiny_space.read_text())
    assert len(plan_sweep([tiny_space, copy], ["fake"], Protocol(), name="t").models) == 4


def test_spaces_are_found_by_name_and_by_path(tiny_space: Path) -> None:
    assert find_spaces(["smoke", str(tiny_space)]) == [bundled_spaces()["smoke"], tiny_space]
    with pytest.raises(SpecError, match="resnet-varied-width"):
        find_spaces(["no-such-space"])


def test_an_unknown_runtime_names_those_that_there_are(tiny_space: Path) -> None:
    with pytest.raises(LatmodError, match="onnxruntime"):
        plan_sweep([tiny_space], ["nonsense"], Protocol(), name="t")


@pytest.mark.parametrize("name", sorted(name for name, path in bundled_spaces().items() if path.is_file()))
def test_every_bundled_space_can_be_planned(name: str) -> None:
    assert plan_sweep([bundled_spaces()[name]], ["fake"], Protocol(), name=name).planned
