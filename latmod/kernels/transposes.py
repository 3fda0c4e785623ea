"""How onnxruntime moves transposes towards the outputs until they meet and cancel (its transpose optimizer), in part.

Pushed are transposes through a Gather of one position, through a Reshape that puts a dim of 1 first or parts dims (so
rows become an image), through reductions that keep their dims, and through sums whose inputs all carry the same one;
through a Split, a Squeeze, a Softmax and what goes element by element where another transpose follows that they may
meet. Those that follow each other become one.
"""

from collections.abc import Sequence
from math import prod

from latmod.graph import Attributed
from latmod.kernels.rewriting import Rewriter, Step

_BINARY = frozenset({"Add", "Mul", "Sub", "Div"})
# A transpose that goes into one of these may come out again.
_PASSED = _BINARY | {"Concat", "Neg", "Relu", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Tanh", "Unsqueeze"}
_MAX_PASSES = 8


def move_transposes(work: Rewriter) -> None:
    """Push and join transposes until nothing changes."""
    for _ in range(_MAX_PASSES):
        changed = _join(work)
        changed |= _push_through_gathers(work)
        changed |= _push_through_splits(work)
        changed |= _push_through_squeezes(work)
        changed |= _push_through_softmaxes(work)
        changed |= _push_through_reductions(work)
        changed |= _push_through_sums(work)
        changed |= _push_through_elements(work)
        changed |= _push_through_unsqueezes(work)
        changed |= _push_through_partings(work)
        if not changed:
            return


def permutation(work: Rewriter, step: Step) -> tuple[int, ...]:
    """Give the order of dims that a Transpose makes."""
    return order_of_dims(step, len(work.shape(step.inputs[0])))


def order_of_dims(transpose: Attributed, rank: int) -> tuple[int, ...]:
    """Give the order that a Transpose makes of so many dims: where it does not say, the reverse."""
    return transpose.ints("perm", tuple(reversed(range(rank))))


def _turned_back(shape: Sequence[int], perm: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape as it is before a transpose, of what it is behind it."""
    return tuple(shape[perm.index(dim)] for dim in range(len(perm)))


def _transpose_after(
    work: Rewriter, step: Step, inputs: list[str], shapes: Sequence[tuple[int, ...]], perm: tuple[int, ...]
) -> None:
    """Let a step read other inputs, which makes its outputs of other shapes, and transpose these to what they were."""
    results = step.outputs[: len(shapes)]
    plain = [work.declare(f"{name}:plain", name, shape) for name, shape in zip(results, shapes, strict=True)]
    work.rewire(step, inputs)
    work.redirect(step, *plain)
    for source, result in zip(reversed(plain), reversed(results), strict=True):
        after = work.insert("Transpose", source, result, step, after=True)
        after.attributes = {"perm": perm}


def _drop_unread(work: Rewriter, step: Step) -> None:
    if not step.gone and not work.uses(step.out) and step.out not in work.results:
        work.remove(step)


def _join(work: Rewriter) -> bool:
    changed = False
    for step in work.live("Transpose"):
        before = work.producers.get(step.inputs[0])
        if before is None or before.op != "Transpose":
            continue
        first, second = permutation(work, before), permutation(work, step)
        joined = tuple(first[dim] for dim in second)
        source = before.inputs[0]
        changed = True
        if joined == tuple(range(len(joined))) and step.out not in work.results:
            work.bypass(step, source)
        else:
            work.rewire(step, [source])
            step.attributes = {"perm": joined}
        _drop_unread(work, before)
    return changed


def _push_through_gathers(work: Rewriter) -> bool:
    """Gather one position first and transpose what is left."""
    changed = False
    for step in work.live("Gather"):
        before = work.producers.get(step.inputs[0])
        if before is None or before.op != "Transpose" or work.shape(step.inputs[1]) != () or step.out in work.results:
            continue
        perm = permutation(work, before)
        axis = step.integer("axis", 0) % len(perm)
        source, moved = before.inputs[0], perm[axis]
        rest = [dim for position, dim in enumerate(perm) if position != axis]
        shape = tuple(size for dim, size in enumerate(work.shape(source)) if dim != moved)
        step.attributes = {"axis": moved}
        _transpose_after(work, step, [source, step.inputs[1]], [shape], tuple(dim - (dim > moved) for dim in rest))
        _drop_unread(work, before)
        changed = True
    return changed


def _pushable(work: Rewriter, step: Step) -> Step | None:
    """Return the Transpose whose result a step alone reads."""
    before = work.producers.get(step.inputs[0])
    if before is None or before.op != "Transpose" or work.only_reader(before.out) is not step:
        return None
    return None if any(name in work.results for name in step.outputs) else before


def _movable(work: Rewriter, step: Step, name: str) -> Step | None:
    """Return the Transpose that makes a value, where a step alone reads it, or all that do lead to another."""
    before = work.producers.get(name)
    if before is None or before.op != "Transpose" or name in work.results:
        return None
    others = [reader for reader in work.uses(name) if reader is not step]
    if all(reader.op in _PASSED and _leads_to_transpose(work, reader) for reader in others):
        return before
    return None


def _leads_to_transpose(work: Rewriter, step: Step) -> bool:
    """Tell whether a transpose follows, with nothing but what transposes go through between."""
    seen, open_steps = {id(step)}, [step]
    while open_steps:
        for name in open_steps.pop().outputs:
            for reader in work.uses(name):
                if reader.op == "Transpose":
                    return True
                if reader.op in _PASSED and id(reader) not in seen:
                    seen.add(id(reader))
                    open_steps.append(reader)
    return False


def _meets_transpose(work: Rewriter, step: Step) -> bool:
    """Tell whether a transpose follows, and nobody else reads what comes between."""
    after = work.only_reader(step.out)
    while after is not None and after.op in _PASSED:
        after = work.only_reader(after.out) if len(after.outputs) == 1 else None
    return after is not None and after.op == "Transpose"


def _push_through_splits(work: Rewriter) -> bool:
    """Split first and transpose the parts."""
    changed = False
    for step in work.live("Split"):
        before = _movable(work, step, step.inputs[0])
        if before is None or work.results.intersection(step.outputs) or not _leads_to_transpose(work, step):
            continue
        perm = permutation(work, before)
        axis = step.integer("axis", 0) % len(perm)
        shapes = [_turned_back(work.shape(name), perm) for name in step.outputs]
        step.attributes = {**step.attributes, "axis": perm[axis]}
        _transpose_after(work, step, [before.inputs[0], *step.inputs[1:]], shapes, perm)
        _drop_unread(work, before)
        changed = True
    return changed


def _push_through_squeezes(work: Rewriter) -> bool:
    """Squeeze one dim first and transpose what is left."""
    changed = False
    for step in work.live("Squeeze"):
        before = _pushable(work, step)
        if before is None or not _meets_transpose(work, step):
            continue
        perm = permutation(work, before)
        kept = _kept_dims(work.shape(step.inputs[0]), work.shape(step.out), work.graph.constants.get(step.inputs[-1]))
        if kept is None:
            continue
        source = work.shape(before.inputs[0])
        left = sorted(perm[dim] for dim in kept)
        _transpose_after(
            work,
            step,
            [before.inputs[0], *step.inputs[1:]],
            [tuple(source[dim] for dim in left)],
            tuple(left.index(perm[dim]) for dim in kept),
        )
        _drop_unread(work, before)
        changed = True
    return changed


def _kept_dims(before: tuple[int, ...], after: tuple[int, ...], axes: Sequence[float] | None) -> tuple[int, ...] | None:
    """Return which dims a Squeeze leaves, None where nothing tells; without axes, where a single dim is 1."""
    dims = range(len(before))
    gone = {int(axis) % len(before) for axis in axes} if axes else {dim for dim in dims if before[dim] == 1}
    kept = tuple(dim for dim in dims if dim not in gone)
    return kept if tuple(before[dim] for dim in kept) == after else None


def _push_through_softmaxes(work: Rewriter) -> bool:
    """Take the Softmax along the axis as it lies before the transpose, and transpose its result."""
    changed = False
    for step in work.live("Softmax"):
        before = _pushable(work, step)
        if before is None or not _meets_transpose(work, step):
            continue
        perm = permutation(work, before)
        step.attributes = {**step.attributes, "axis": perm[step.integer("axis", -1) % len(perm)]}
        _transpose_after(work, step, [before.inputs[0]], [work.shape(before.inputs[0])], perm)
        _drop_unread(work, before)
        changed = True
    return changed


def _push_through_reductions(work: Rewriter) -> bool:
    """Reduce first and transpose the little that is left, also where others read the transposed input."""
    changed = False
    for step in work.live():
        before = work.producers.get(step.inputs[0]) if step.op.startswith("Reduce") else None
        if before is None or before.op != "Transpose" or step.out in work.results:
            continue
        source, perm = work.shape(before.inputs[0]), permutation(work, before)
        reduced = work.shape(step.out)
        if len(reduced) != len(source):
            continue
        shape = _turned_back(reduced, perm)
        _transpose_after(work, step, [before.inputs[0], *step.inputs[1:]], [shape], perm)
        _drop_unread(work, before)
        changed = True
    return changed


def _push_through_sums(work: Rewriter) -> bool:
    """Combine first and transpose once, where both inputs carry the same transpose."""
    changed = False
    for step in work.live(*_BINARY):
        if len(step.inputs) != 2 or step.out in work.results:
            continue
        before = [work.producers.get(name) for name in step.inputs]
        pair = [one for one in before if one is not None and one.op == "Transpose"]
        if len(pair) < 2 or permutation(work, pair[0]) != permutation(work, pair[1]):
            continue
        sources = [one.inputs[0] for one in pair]
        if work.shape(sources[0]) != work.shape(sources[1]):
            continue
        _transpose_after(work, step, sources, [work.shape(sources[0])], permutation(work, pair[0]))
        for one in pair:
            _drop_unread(work, one)
        changed = True
    return changed


def _push_through_elements(work: Rewriter) -> bool:
    """Compute element by element, or join, first and transpose what comes of it: the keys of rotary embeddings."""
    changed = False
    for step in work.live(*_BINARY, "Concat", "Neg", "Relu"):
        fixed = {name for name in step.inputs if name in work.static}
        before = [_movable(work, step, name) for name in step.inputs if name not in fixed]
        turned = [one for one in before if one is not None]
        perms = {permutation(work, one) for one in turned}
        if len(turned) < len(before) or len(perms) != 1 or step.out in work.results:
            continue
        (perm,) = perms
        if len(work.shape(step.out)) != len(perm) or not _leads_to_transpose(work, step):
            continue
        sources = iter([one.inputs[0] for one in turned])
        inputs = [_constant_before(work, name, perm) if name in fixed else next(sources) for name in step.inputs]
        if step.op == "Concat":
            step.attributes = {**step.attributes, "axis": perm[step.integer("axis", 0) % len(perm)]}
        _transpose_after(work, step, inputs, [_turned_back(work.shape(step.out), perm)], perm)
        for one in turned:
            _drop_unread(work, one)
        changed = True
    return changed


def _constant_before(work: Rewriter, name: str, perm: tuple[int, ...]) -> str:
    """Return a constant as it is read before a transpose instead of behind it."""
    shape = work.shape(name)
    if prod(shape) == 1:
        return name
    wide = (*(1,) * (len(perm) - len(shape)), *shape)
    return work.declare(f"{name}:turned:{'x'.join(map(str, perm))}", name, _turned_back(wide, perm), static=True)


def _push_through_unsqueezes(work: Rewriter) -> bool:
    """Reshape first and transpose what comes of it, where the reshape only adds a first dim of 1.

    That is put before the dim which the transpose brings to the front.
    """
    changed = False
    for step in work.live("Reshape", "Unsqueeze"):
        before = _pushable(work, step)
        if before is None or work.shape(step.out) != (1, *work.shape(before.out)):
            continue
        source = before.inputs[0]
        shape, old = work.shape(source), permutation(work, before)
        first = old[0]
        perm = (first, *(dim + (dim >= first) for dim in old))
        _transpose_after(work, step, [source, *step.inputs[1:]], [(*shape[:first], 1, *shape[first:])], perm)
        _drop_unread(work, before)
        changed = True
    return changed


def _push_through_partings(work: Rewriter) -> bool:
    """Reshape first and transpose what comes of it, where the reshape parts dims into several: rows become an image."""
    changed = False
    for step in work.live("Reshape"):
        before = _pushable(work, step)
        parts = _parted_dims(work.shape(before.out), work.shape(step.out)) if before is not None else None
        if before is None or parts is None:
            continue
        perm = permutation(work, before)
        placed = [dim for own in range(len(perm)) for dim in parts[perm.index(own)]]
        back = tuple(placed.index(dim) for dim in range(len(placed)))
        _transpose_after(
            work, step, [before.inputs[0], *step.inputs[1:]], [_turned_back(work.shape(step.out), back)], back
        )
        _drop_unread(work, before)
        changed = True
    return changed


def _parted_dims(before: tuple[int, ...], after: tuple[int, ...]) -> list[list[int]] | None:
    """Return the dims that each dim is parted into, None where some are joined or nothing is parted."""
    found: list[list[int]] = []
    place = 0
    for size in before:
        own = [place]
        while prod(after[place : own[-1] + 1]) < size and own[-1] + 1 < len(after):
            own.append(own[-1] + 1)
        if prod(after[place : own[-1] + 1]) != size or (len(own) > 1 and any(after[dim] == 1 for dim in own)):
            return None
        found.append(own)
        place = own[-1] + 1
    return found if place == len(after) > len(before) else None
