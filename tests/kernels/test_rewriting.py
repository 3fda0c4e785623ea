"""Steps stay in order, wherever others are put in or take the place of several."""

from itertools import pairwise
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from latmod.graph import read_graph
from latmod.kernels.rewriting import Rewriter


@pytest.fixture
def work(tmp_path: Path) -> Rewriter:
    """Return a chain a, b, c, d of Relu."""
    names = ["x", "a", "b", "c", "d"]
    nodes = [helper.make_node("Relu", [before], [after]) for before, after in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "d")]
    save(helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:])), tmp_path / "chain.onnx")
    return Rewriter(read_graph(tmp_path / "chain.onnx"))


def outputs(work: Rewriter) -> list[str]:
    return [step.out for step in work.live()]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("beside", ["a", "b", "d"])
def test_a_step_stands_beside_another(work: Rewriter, beside: str, after: bool) -> None:
    expected = outputs(work)
    expected.insert(expected.index(beside) + after, "new")
    work.insert("Neg", "x", "new", work.producers[beside], after=after)
    assert outputs(work) == expected


def test_any_number_fits_between_two(work: Rewriter) -> None:
    """Floats between two others come to an end after some fifty halvings; the order must not."""
    for number in range(200):
        work.insert("Neg", "a", f"new{number}", work.producers["a"], after=True)
    assert outputs(work) == ["a", *(f"new{number}" for number in reversed(range(200))), "b", "c", "d"]
    work.replace(work.producers["new100"], "Abs", ["a"], ["abs"])
    assert outputs(work)[100] == "abs"


def test_what_replaces_several_stands_where_the_last_of_them_stood(work: Rewriter) -> None:
    c, a = work.producers["c"], work.producers["a"]
    made = work.replace(c, "Fused", ["x"], ["c"], a)
    assert outputs(work) == ["b", "c", "d"]
    assert made.sources == [*c.sources, *a.sources]
    assert work.only_reader("c") is work.producers["d"]
