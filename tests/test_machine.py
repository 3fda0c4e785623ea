import os
import re
import socket

import msgspec

from latmod.machine import disturbance, read_counters, read_machine, read_versions, usable_cores


def test_the_machine_is_the_same_when_read_twice_and_round_trips() -> None:
    machine = read_machine()
    assert read_machine().id == machine.id
    assert msgspec.json.decode(msgspec.json.encode(machine), type=type(machine)) == machine
    assert re.fullmatch(r"[0-9a-f]{12}", machine.id)


def test_the_machine_changes_its_identity_with_any_field() -> None:
    machine = read_machine()
    assert msgspec.structs.replace(machine, memory_gib=machine.memory_gib + 1).id != machine.id


def test_nothing_personal_is_in_the_record() -> None:
    text = msgspec.json.encode([read_machine(), read_versions()]).decode()
    assert socket.gethostname() not in text
    assert os.path.expanduser("~") not in text  # noqa: PTH111


def test_counters_grow() -> None:
    before = read_counters()
    sum(range(200_000))
    around = disturbance(before, read_counters())
    assert around.wall_ns > 0
    assert around.cpu_ns > 0
    assert around.steal_ns >= 0
    assert around.involuntary_switches >= 0


def test_usable_cores_are_those_of_the_scheduler() -> None:
    assert set(usable_cores()) == os.sched_getaffinity(0)
