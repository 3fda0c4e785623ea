import math

from latmod.dataset import KernelTime
from latmod.kernels import FIELDS, Kernel
from latmod.labels import join


def kernel(op: str, inputs=((1, 8, 4, 4), (8, 8, 3, 3)), value: str = "y") -> Kernel:
    return Kernel(
        op=op, kind=op, numbers=(0.0,) * len(FIELDS), nodes=(), label=op, inputs=inputs, outputs=((1, 8, 4, 4),),
        values=(value,),
    )  # fmt: skip


def told(op: str, ns: int, inputs=((1, 8, 4, 4), (8, 8, 3, 3)), count: int = 1, value: str = "") -> KernelTime:
    return KernelTime(op=op, inputs=inputs, outputs=((1, 8, 4, 4),), value=value, count=count, ns=ns)


def test_kernels_match_by_operator_and_shapes_whatever_the_domain_and_small_inputs() -> None:
    times = [told("Conv", 100, inputs=((1, 8, 4, 4), (8, 8, 3, 3), (8,)), count=2), told("Relu", 10, inputs=())]
    expected = [kernel("com.microsoft.nchwc::Conv"), kernel("com.microsoft.nchwc::Conv"), kernel("Add")]
    labels, total, unmatched = join(expected, [times])
    assert labels[:2] == (100.0, 100.0)
    assert math.isnan(labels[2])
    assert (total, unmatched) == (210.0, 10)


def test_kernels_match_by_the_value_where_the_engine_names_it() -> None:
    labels, total, unmatched = join([kernel("Add", value="a"), kernel("Add", value="b")], [[told("", 5, value="b")]])
    assert math.isnan(labels[0])
    assert labels[1] == total == 5.0
    assert unmatched == 0.0


def test_bursts_are_averaged_and_no_burst_is_no_label() -> None:
    labels, _, _ = join([kernel("Add")], [[told("Add", 10)], [told("Add", 20)]])
    assert labels == (15.0,)
    labels, total, _ = join([kernel("Add")], [])
    assert math.isnan(labels[0])
    assert math.isnan(total)
