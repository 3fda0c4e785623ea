"""The blocked layout of onnxruntime's convolutions: channels in blocks of 8 or 16, reordered where it begins.

Follows `nchwc_transformer.cc`. Values in the blocked layout have their channels padded to whole blocks.
"""

from latmod.kernels.rewriting import Rewriter, Step

DOMAIN = "com.microsoft.nchwc::"
RESIZE, UPSAMPLE = "Resize", "Upsample"
RESIZING = (RESIZE, UPSAMPLE)
"""The operator, and its name before the tenth version of ONNX, which onnxruntime's own in blocks of channels has."""
_ALIGNMENT = 4
_FUSABLE = frozenset({"Relu", "Sigmoid", "Tanh", "HardSigmoid"})
# Element by element, so they pass the blocked layout on (onnxruntime PR 27691 and 27821).
_PASSING = frozenset({"Gelu", "com.microsoft::Gelu", "com.microsoft::QuickGelu"})
_FUSED = "com.microsoft::FusedConv"


class _Blocked:
    """A value in the blocked layout: who makes it, its logical channels, and how many still want it plain."""

    __slots__ = ("channels", "name", "plain_uses", "step", "uses")

    def __init__(self, name: str, step: Step, channels: int, uses: int) -> None:
        self.name = name
        self.step = step
        self.channels = channels
        self.uses = uses
        self.plain_uses = uses


def block_layout(work: Rewriter, block: int) -> None:
    """Move convolutions, pools and what stands between them into the blocked layout."""
    _Layout(work, block).run()


class _Layout:
    def __init__(self, work: Rewriter, block: int) -> None:
        self.work = work
        self.block = block
        self.blocked: dict[str, _Blocked] = {}
        self.reordered: dict[str, str] = {}

    def run(self) -> None:
        for step in self.work.live():
            if step.op in ("Conv", _FUSED):
                self._conv(step)
            elif step.op in ("MaxPool", "AveragePool"):
                self._pool(step)
            elif all(name in self.blocked for name in step.inputs if name and name not in self.work.static):
                self._follow(step)
        self._finish()

    def _follow(self, step: Step) -> None:
        """Move a step whose inputs are all in the blocked layout."""
        if step.op in ("Add", "Sum"):
            self._binary(step, add=True)
        elif step.op == "Mul":
            if any(name in self.work.static for name in step.inputs):
                self._scale(step)
            else:
                self._binary(step, add=False)
        elif step.op == "Concat":
            self._concat(step)
        elif step.op in _FUSABLE | _PASSING:
            self._activation(step)
        elif step.op == "BatchNormalization":
            self._norm(step)
        elif step.op in ("GlobalAveragePool", "GlobalMaxPool"):
            self._pool(step)
        elif step.op in RESIZING:
            self._resize(step)
        elif step.op == "Transpose" and step.attributes.get("perm") == (0, 2, 3, 1):
            self._leave_channels_last(step)

    def _padded(self, channels: int) -> int:
        return -(-channels // self.block) * self.block

    def _enter(self, step: Step, channels: int) -> None:
        """Let a step write its output in the blocked layout."""
        work, plain = self.work, step.out
        shape = work.shape(plain)
        uses = len(work.uses(plain)) + (plain in work.results)
        name = work.declare(f"{plain}:blocked", plain, (shape[0], self._padded(channels), *shape[2:]))
        work.producers.pop(plain, None)
        step.outputs = [name]
        work.producers[name] = step
        self.blocked[plain] = _Blocked(name, step, channels, uses)

    def _take(self, step: Step, name: str) -> str:
        """Give a value in the blocked layout to a step, reordering it first where it is plain."""
        found = self.blocked.get(name)
        if found is not None:
            found.plain_uses -= 1
            return found.name
        if name not in self.reordered:
            work, shape = self.work, self.work.shape(name)
            target = work.declare(f"{name}:reordered", name, (shape[0], self._padded(shape[1]), *shape[2:]))
            reorder = Step(f"{DOMAIN}ReorderInput", [], [target], {}, [])
            work.append(reorder)
            before = work.producers.get(name)
            if before is not None and before.attributes.get("perm") == (0, 3, 1, 2) and work.only_reader(name) is step:
                # Channels come last: the reorder reads them so, and the transpose goes.
                reorder.sources += before.sources
                work.rewire(reorder, [before.inputs[0]])
                work.remove(before)
            else:
                work.rewire(reorder, [name])
            self.reordered[name] = target
        return self.reordered[name]

    def _conv(self, step: Step) -> None:
        work, block = self.work, self.block
        weight = work.shape(step.inputs[1])
        if len(weight) != 4 or any(name not in work.static for name in step.inputs[1:] if name):
            return
        tensor = work.tensors.get(step.inputs[0])
        if tensor is None or tensor.dtype != "float32" or "quantized" in step.attributes:
            return
        filters, channels = weight[0], weight[1]
        group = step.integer("group", 1)
        reorders, wide, groups = True, channels, group
        if group > 1:
            if filters % _ALIGNMENT:
                return
            if channels == 1 and filters == group:
                groups = self._padded(filters)
            elif channels % block or filters % group or (filters // group) % block:
                return
        elif channels < block:
            reorders = False
        elif channels % _ALIGNMENT:
            return
        else:
            wide = self._padded(channels)
        source = self._take(step, step.inputs[0]) if reorders else step.inputs[0]
        shape = (self._padded(filters), wide, *weight[2:])
        inputs = [source, work.declare(f"{step.inputs[1]}:blocked", step.inputs[1], shape, static=True)]
        if len(step.inputs) > 2 and step.inputs[2]:
            inputs.append(work.declare(f"{step.inputs[2]}:blocked", step.inputs[2], shape[:1], static=True))
        work.rewire(step, inputs)
        step.op = f"{DOMAIN}Conv"
        step.attributes["group"] = groups
        if not reorders:
            step.attributes["plain_input"] = 1
        self._enter(step, filters)

    def _pool(self, step: Step) -> None:
        shape = self.work.shape(step.inputs[0])
        if len(shape) != 4 or shape[1] % self.block or len([name for name in step.outputs if name]) > 1:
            return
        self.work.rewire(step, [self._take(step, step.inputs[0])])
        step.op = f"{DOMAIN}{step.op}"
        self._enter(step, shape[1])

    def _binary(self, step: Step, *, add: bool) -> None:
        work = self.work
        found = [self.blocked.get(name) for name in step.inputs]
        values = [one for one in found if one is not None]
        if len(values) < len(found) or len({work.shape(name) for name in step.inputs}) > 1:
            return
        if len({one.channels for one in values}) > 1:
            return
        for one in values:
            one.plain_uses -= 1
        if add and len(values) == 2:
            for position, one in enumerate(values):
                conv, other = one.step, values[1 - position]
                fits = conv.op == f"{DOMAIN}Conv" and len(conv.inputs) < 4 and "activation" not in conv.attributes
                if fits and one.uses == 1 and other is not one:
                    work.rewire(conv, [*conv.inputs, *[""] * (3 - len(conv.inputs)), other.name])
                    self._fuse(step, one)
                    return
        work.rewire(step, [one.name for one in values])
        self._enter(step, values[0].channels)

    def _fuse(self, step: Step, value: _Blocked) -> None:
        """Let the step that makes a value do the work of one that follows it."""
        work, plain = self.work, step.out
        uses = len(work.uses(plain)) + (plain in work.results)
        value.step.sources += step.sources
        work.remove(step)
        work.tensors.setdefault(value.name, work.tensors[plain])
        self.blocked[plain] = _Blocked(value.name, value.step, value.channels, uses)

    def _concat(self, step: Step) -> None:
        values = [self.blocked[name] for name in step.inputs if name in self.blocked]
        if len(values) < len(step.inputs) or step.attributes.get("axis") != 1:
            return
        if any(one.channels % self.block for one in values):
            return
        for one in values:
            one.plain_uses -= 1
        self.work.rewire(step, [one.name for one in values])
        self._enter(step, sum(one.channels for one in values))

    def _activation(self, step: Step) -> None:
        value = self.blocked.get(step.inputs[0])
        if value is None:
            return
        if step.op == "HardSigmoid" and self._hard_swish(step, value):
            return
        value.plain_uses -= 1
        conv = value.step
        bare = conv.op == f"{DOMAIN}Conv" and value.uses == 1 and "activation" not in conv.attributes
        if bare and step.op in _FUSABLE:
            conv.attributes["activation"] = step.op
            self._fuse(step, value)
        else:
            self.work.rewire(step, [value.name, *step.inputs[1:]])
            self._enter(step, value.channels)

    def _hard_swish(self, step: Step, value: _Blocked) -> bool:
        """Let a convolution compute x * HardSigmoid(x) where nothing else reads it (onnxruntime PR 31957)."""
        work, conv = self.work, value.step
        product = work.only_reader(step.out)
        if conv.op != f"{DOMAIN}Conv" or "activation" in conv.attributes or value.uses != 2:
            return False
        if product is None or product.op != "Mul" or step.inputs[0] not in product.inputs:
            return False
        value.plain_uses -= 2
        conv.attributes["activation"] = "HardSwish"
        conv.sources += step.sources
        work.remove(step)
        self._fuse(product, value)
        return True

    def _scale(self, step: Step) -> None:
        """Turn a product with one static number per channel into a depthwise 1x1 convolution (PR 27691)."""
        work = self.work
        moving = [name for name in step.inputs if name in self.blocked]
        if len(moving) != 1 or len(step.inputs) != 2:
            return
        value = self.blocked[moving[0]]
        fixed = next(name for name in step.inputs if name != moving[0])
        if work.shape(fixed) not in ((value.channels, 1, 1), (1, value.channels, 1, 1)):
            return
        value.plain_uses -= 1
        padded = self._padded(value.channels)
        weight = work.declare(f"{step.out}:scale", fixed, (padded, 1, 1, 1), static=True)
        work.rewire(step, [value.name, weight])
        step.op, step.attributes = f"{DOMAIN}Conv", {"group": padded}
        self._enter(step, value.channels)

    def _leave_channels_last(self, step: Step) -> None:
        """Let one reorder leave the blocked layout with channels last."""
        value = self.blocked.get(step.inputs[0])
        if value is None:
            return
        value.plain_uses -= 1
        self.work.rewire(step, [value.name])
        step.op, step.attributes = f"{DOMAIN}ReorderOutput", {"channels": value.channels}

    def _norm(self, step: Step) -> None:
        """Turn a batch norm into a depthwise 1x1 convolution."""
        value = self.blocked.get(step.inputs[0])
        if value is None:
            return
        value.plain_uses -= 1
        work, padded = self.work, self._padded(value.channels)
        weight = work.declare(f"{step.out}:scale", step.inputs[1], (padded, 1, 1, 1), static=True)
        bias = work.declare(f"{step.out}:shift", step.inputs[1], (padded,), static=True)
        work.rewire(step, [value.name, weight, bias])
        step.op, step.attributes = f"{DOMAIN}Conv", {"group": padded}
        step.outputs = step.outputs[:1]
        self._enter(step, value.channels)

    def _resize(self, step: Step) -> None:
        value = self.blocked.get(step.inputs[0])
        before, after = self.work.shape(step.inputs[0]), self.work.shape(step.out)
        nearest = step.attributes.get("mode", "nearest") == "nearest"
        transform = step.attributes.get("coordinate_transformation_mode", "half_pixel")
        whole = len(before) == 4 and all(b and a % b == 0 for a, b in zip(after, before, strict=False))
        if value is None or not whole or before[:2] != after[:2] or step.attributes.get("mode") == "cubic":
            return
        if transform != "asymmetric" and (nearest or transform not in ("align_corners", "half_pixel")):
            return
        if nearest and step.attributes.get("nearest_mode", "round_prefer_floor") != "floor":
            return
        value.plain_uses -= 1
        self.work.rewire(step, [value.name])
        step.op = f"{DOMAIN}{UPSAMPLE}"
        self._enter(step, value.channels)

    def _finish(self) -> None:
        """Reorder what is still wanted in the plain layout."""
        for plain, value in self.blocked.items():
            if value.plain_uses > 0:
                reorder = Step(f"{DOMAIN}ReorderOutput", [], [plain], {"channels": value.channels}, [])
                self.work.append(reorder)
                self.work.rewire(reorder, [value.name])
