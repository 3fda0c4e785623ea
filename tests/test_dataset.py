import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmod.dataset import (
    MEASUREMENTS_FILE,
    Card,
    DatasetFolder,
    Measurement,
    PlannedModel,
    Protocol,
    Seeds,
    final_bursts,
    nominal_reference,
)
from latmod.errors import DatasetError
from latmod.machine import read_machine
from latmod.timing import Reference


def card_of(*models: str, rounds: int = 2, runtimes: tuple[str, ...] = ("fake",)) -> Card:
    return Card(
        schema=1,
        name="test",
        created="2026-01-01T00:00:00+00:00",
        latmod="0",
        spaces=[],
        protocol=Protocol(
            threads=1,
            rounds=rounds,
            burst_seconds=0.01,
            min_samples=2,
            max_samples=5,
            max_latency_seconds=0,
            input_count=1,
            images="",
            seeds=Seeds(),
        ),
        runtimes=dict.fromkeys(runtimes, "1.0"),
        machine=read_machine(),
        versions={},
        models=[
            PlannedModel(model=name, family="resnet", spec={}, macs=1, params=1, memory_bytes=1) for name in models
        ],
    )


def burst_of(model: str = "a", number: int = 0, status: str = "ok", **fields: object) -> Measurement:
    return Measurement(model=model, runtime="fake", round=number, status=status, **fields)  # type: ignore[arg-type]


def test_a_card_round_trips(tmp_path: Path) -> None:
    folder = DatasetFolder(tmp_path)
    folder.write_card(card_of("a", "b"))
    assert folder.read_card() == card_of("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "dataset.json"), ("{", "dataset.json"), ('{"schema": 99}', "schema 99"), ('{"schema": 1}', "missing")],
)
def test_a_broken_card_gives_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=message) as caught:
        DatasetFolder(tmp_path).read_card()
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a data set"):
        DatasetFolder(tmp_path / "nothing").read_card()


@given(st.integers(0, 400))
def test_a_torn_last_line_is_cut_off_and_nothing_else_is_lost(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = DatasetFolder(Path(name))
        with folder.writing() as log:
            for number in range(3):
                log.append(burst_of(number=number, samples_ns=(1, 2, 3)))
        path = folder.path / MEASUREMENTS_FILE
        content = path.read_bytes()
        kept = content[: max(0, len(content) - cut)]
        path.write_bytes(kept)
        whole = kept.count(b"\n")
        assert len(folder.read_measurements()) == whole
        with folder.writing() as log:
            log.append(burst_of(number=9))
        assert [m.round for m in folder.read_measurements()] == [*range(whole), 9]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / MEASUREMENTS_FILE).write_text('{"no": 1}\n')
    with pytest.raises(DatasetError, match="line 1"):
        DatasetFolder(tmp_path).read_measurements()


def test_two_writers_exclude_each_other(tmp_path: Path) -> None:
    folder = DatasetFolder(tmp_path)
    with folder.writing(), pytest.raises(DatasetError, match="another sweep"), folder.writing():
        pass
    with folder.writing():
        pass


def test_a_path_that_cannot_be_a_folder_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot be written"), DatasetFolder(tmp_path / "file").writing():
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_gives_one_line_and_keeps_what_was_there(tmp_path: Path) -> None:
    folder = DatasetFolder(tmp_path)
    with folder.writing() as log:
        log.append(burst_of())
        os.dup2(os.open("/dev/full", os.O_WRONLY), log._bursts._file)
        with pytest.raises((DatasetError, OSError)):
            log.append(burst_of(number=1))
    assert len(folder.read_measurements()) == 1


def test_the_last_good_burst_of_a_round_counts() -> None:
    bursts = final_bursts(
        [
            burst_of(status="unsteady", samples_ns=(9,)),
            burst_of(attempt=1, samples_ns=(5,)),
            burst_of(number=1, status="failed"),
        ]
    )
    assert {number: m.samples_ns for number, m in bursts["a", "fake"].items()} == {0: (5,)}


def test_the_nominal_state_is_the_median_of_both_references() -> None:
    def reference(ns: int) -> Reference:
        return Reference(conv_ns=ns, copy_ns=ns, dispatch_ns=ns)

    found = nominal_reference([burst_of(before=reference(1), after=reference(3)), burst_of(before=reference(2))])
    assert found == reference(2)
    with pytest.raises(DatasetError, match="nominal"):
        nominal_reference([])
