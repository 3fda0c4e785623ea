import numpy as np

from latmod.coverage import observe_ranges, share_group, unseen
from latmod.kernels import FIELDS, Kernel


def kernel(kind: str, **numbers: float) -> Kernel:
    return Kernel(
        op=kind,
        kind=kind,
        numbers=tuple(numbers.get(field, 0.0) for field in FIELDS),
        nodes=("n",),
        label=f"one {kind}",
        inputs=(),
        outputs=(),
        values=(),
    )


def test_what_was_never_measured_is_named_with_its_share() -> None:
    ranges = observe_ranges([kernel("Conv", macs=100.0), kernel("Conv", macs=1000.0)])
    found = unseen(
        [kernel("Conv", macs=500.0), kernel("Erf"), kernel("Conv", macs=9000.0)], np.array([1.0, 2.0, 7.0]), ranges
    )
    # What was never measured may take four times what its bytes say: 8 of 16.
    assert [(one.kind, one.share) for one in found] == [("Erf", 0.5), ("Conv", 0.4375)]
    assert "macs 9000 of a Conv is beyond what was measured (100 to 1000)" in found[1].reason
    assert found[0].reason == "Erf was never measured"
    assert [one.never for one in found] == [True, False]


def test_a_little_beyond_is_inside() -> None:
    ranges = observe_ranges([kernel("Conv", macs=100.0), kernel("Conv", macs=1000.0)])
    assert unseen([kernel("Conv", macs=1200.0), kernel("Conv", macs=90.0)], np.ones(2), ranges) == []


def test_another_rank_is_outside() -> None:
    """Torch calls convolutions in two and in three dimensions the same."""
    ranges = observe_ranges([kernel("Conv", rank=4.0)])
    assert [one.reason.partition(" of ")[0] for one in unseen([kernel("Conv", rank=5.0)], np.ones(1), ranges)] == [
        "rank 5"
    ]


def test_share_groups() -> None:
    assert share_group(0.0, 0.0) == 0
    assert [share_group(share, 0.02) for share in (0.02, 0.1, 0.2, 0.5)] == [0, 1, 1, 2]
    assert [share_group(share, 0.03) for share in (0.03, 0.5)] == [3, 3]
