"""The rules against onnxruntime on forms that exporters write: those of timm's networks, of transformers, of others."""

from collections import Counter
from pathlib import Path

import pytest
from engine_told import expected_and_told
from exports import export_module

from latmod.graph import read_graph
from latmod.kernels import kernels

torch = pytest.importorskip("torch")


class Attention(torch.nn.Module):
    """Queries, keys and values from one product, turned together and then parted."""

    def __init__(self, *, normed: bool = False, talking: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(64, 192), torch.nn.Linear(64, 64)
        self.before, self.after = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.normed, self.talking = normed, talking

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        q, k, v = self.qkv(x).reshape(1, 49, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
        if self.normed:
            q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
        scores = q @ k.transpose(-2, -1)
        if self.talking:
            scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
            scores = self.after(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            scores = scores.softmax(dim=-1)
        return self.out((scores @ v).transpose(1, 2).reshape(1, 49, 64))


class RowsAndImages(torch.nn.Module):
    """Rows of a transformer, convolved as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)
        self.conv = torch.nn.Conv2d(64, 64, 3, padding=1, groups=64)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        image = self.wide(x).transpose(1, 2).reshape(1, 64, 14, 14)
        return x + self.narrow(self.conv(image).flatten(2).transpose(1, 2))


class Padded(torch.nn.Module):
    """Padding by a Pad: done by the convolution that follows, unless another reads it, or it is not of noughts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 3, stride=2)
        self.depthwise = torch.nn.Conv2d(32, 32, 3, groups=32, stride=2)
        self.twins = torch.nn.ModuleList(torch.nn.Conv2d(32, 32, 3) for _ in range(2))
        self.unnamed = torch.nn.Conv2d(32, 32, 2)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        pad = torch.nn.functional.pad
        x = self.stem(pad(x, (0, 1, 0, 1), value=0.0)).relu()
        x = self.depthwise(pad(x, (0, 1, 0, 1), value=0.0)).relu()
        x = self.twins[0](pad(x, (1, 1, 1, 1), value=0.0)) * self.twins[1](pad(x, (1, 1, 1, 1), value=0.0))
        x = torch.nn.functional.max_pool2d(pad(x, (1, 1, 1, 1), value=-float("inf")), 3, 1)
        return pad(self.unnamed(pad(x, (0, 1, 0, 1))), (-1, 1, -1, 1))


class Cut(torch.nn.Module):
    """A slice that ends where its dim does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 32, 3)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        return self.conv(x)[:, :32].relu()[:, :, 2:].sigmoid()


class TextBlock(torch.nn.Module):
    """A block of a decoder: RMSNorm as Llama's is written, positions turned in, a GELU by tanh as GPT-2's is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.turn = torch.nn.Parameter(torch.ones(64)), torch.nn.Parameter(torch.ones(1, 1, 16, 32))
        self.qk, self.wide = (torch.nn.Linear(64, 128, bias=False) for _ in range(2))
        self.back, self.narrow = (torch.nn.Linear(128, 64) for _ in range(2))

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        heads = self.qk(y).view(1, 16, 4, 32).transpose(1, 2)
        turned = heads * self.turn + torch.cat((-heads[..., 16:], heads[..., :16]), -1) * self.turn
        y = y + self.back((turned @ turned.transpose(2, 3) @ heads).transpose(1, 2).reshape(1, 16, 128))
        z = self.wide(y)
        z = 0.5 * z * (1.0 + torch.tanh(0.7978845608 * (z + 0.044715 * torch.pow(z, 3.0))))
        return x + self.narrow(z)


class Looked(torch.nn.Module):
    """Rows of two tables, the first of them and the others apart."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = torch.nn.Embedding(20000, 64), torch.nn.Embedding(512, 64)
        self.first, self.others = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        ids = x.abs().long()
        x = (self.words(ids) + self.places(ids)).relu()
        return self.first(x[:, 0]) + self.others(x[:, 1:]).sum(1)


class Generator(torch.nn.Module):
    """Transposed convolutions with batch norms, and a map mirrored at its edges."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.ConvTranspose2d(32, 32, 4, 2, 1, bias=bias) for bias in (False, True))
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(32) for _ in range(2))

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        x = self.norms[0](self.first(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"))).relu()
        return torch.nn.functional.pad(self.norms[1](self.second(x)), (0, 0, 0, 0), mode="reflect").tanh()


class Pyramid(torch.nn.Module):
    """Rows that become an image, enlarged before it is convolved (SegFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.conv = torch.nn.Linear(32, 48), torch.nn.Conv2d(48, 48, 1)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        image = self.narrow(x).transpose(1, 2).reshape(1, 48, 14, 14)
        image = torch.nn.functional.interpolate(image, size=(32, 32), mode="bilinear", align_corners=False)
        return self.conv(image)


class Recurrent(torch.nn.Module):
    """Two directions, two layers."""

    def __init__(self, kind: type["torch.nn.RNNBase"]) -> None:
        super().__init__()
        self.layers, self.out = kind(32, 64, 2, bidirectional=True), torch.nn.Linear(128, 10)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        return self.out(self.layers(x)[0])


class Enlarged(torch.nn.Module):
    """Maps made larger, by a factor or to a size: some stay in the layout of the convolutions."""

    def __init__(self, mode: str, *, sized: bool) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 32, 3)
        self.options = {"size": (32, 32)} if sized else {"scale_factor": 2.0}
        self.options |= {"mode": mode} | ({} if mode == "nearest" else {"align_corners": False})

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        return self.after(torch.nn.functional.interpolate(self.before(x), **self.options))


class Halved(torch.nn.Module):
    """A GELU in steps, behind a product and behind a convolution; torch's newer exporter halves the sum."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.wide, self.conv = what, torch.nn.Linear(32, 64), torch.nn.Conv2d(64, 32, 1)

    def gelu(self, x: "torch.Tensor") -> "torch.Tensor":
        total = torch.erf(x / 2.0**0.5) + 1.0
        ways = {"input": lambda: 0.5 * x * total, "sum": lambda: x * (0.5 * total), "product": lambda: x * total * 0.5}
        return ways[self.what]()

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        image = self.gelu(self.wide(x)).transpose(1, 2).reshape(1, 64, 14, 14)
        return self.gelu(self.conv(image))


FORMS = {
    "attention": (Attention, (1, 49, 64)),
    "normed attention": (lambda: Attention(normed=True), (1, 49, 64)),
    "talking heads": (lambda: Attention(talking=True), (1, 49, 64)),
    "rows and images": (RowsAndImages, (1, 196, 32)),
    "padded": (Padded, (1, 3, 64, 64)),
    "cut": (Cut, (1, 3, 32, 32)),
    "text block": (TextBlock, (1, 16, 64)),
    "looked up": (Looked, (1, 24)),
    "generator": (Generator, (1, 32, 12, 12)),
    "pyramid": (Pyramid, (1, 196, 32)),
    "long short-term memory": (lambda: Recurrent(torch.nn.LSTM), (20, 1, 32)),
    "gated recurrent units": (lambda: Recurrent(torch.nn.GRU), (20, 1, 32)),
    "enlarged to a size": (lambda: Enlarged("nearest", sized=True), (1, 3, 16, 16)),
    "enlarged by a factor": (lambda: Enlarged("nearest", sized=False), (1, 3, 16, 16)),
    "interpolated to a size": (lambda: Enlarged("bilinear", sized=True), (1, 3, 16, 16)),
    "interpolated by a factor": (lambda: Enlarged("bilinear", sized=False), (1, 3, 16, 16)),
    "gelu, input halved": (lambda: Halved("input"), (1, 196, 32)),
    "gelu, sum halved": (lambda: Halved("sum"), (1, 196, 32)),
    "gelu, product halved": (lambda: Halved("product"), (1, 196, 32)),
}


TOLD = (
    "Pad", "Slice", "Transpose", "Softmax", "Split", "Conv", "ReorderInput", "Resize", "Upsample", "Gather", "FastGelu",
    "SimplifiedLayerNormalization", "Pow", "Tanh", "ConvTranspose", "BatchNormalization", "LSTM", "GRU", "FusedMatMul",
    "Erf", "Gelu", "BiasGelu",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_engine_runs_what_the_rules_expect(form: str, tmp_path: Path) -> None:
    make, shape = FORMS[form]
    path = tmp_path / "form.onnx"
    export_module(make(), shape, path)
    expected, told = expected_and_told(path)
    ours = Counter(kernel.op.rpartition("::")[2] for kernel in expected)
    theirs: Counter[str] = Counter()
    for one in told:
        theirs[one.op.rpartition("::")[2]] += one.count
    for op in TOLD:
        assert ours[op] == theirs[op], (op, ours, theirs)


@pytest.mark.parametrize(
    ("rules", "found_whole"),
    [("openvino", ("input", "sum", "product")), ("mnn", ("product",)), ("tract", ("input", "product")),
     ("ncnn", ("input", "product")), ("torch", ("input", "sum", "product"))],
)  # fmt: skip
@pytest.mark.parametrize("what", ["input", "sum", "product"])
def test_engines_find_some_gelus_and_run_others_in_steps(
    what: str, rules: str, found_whole: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "gelu.onnx"
    export_module(Halved(what), (1, 196, 32), path)
    ops = Counter(one.op.rpartition("::")[2] for one in kernels(read_graph(path), rules, isa=("avx2",)))
    assert (ops["Gelu"] + ops["BiasGelu"], ops["Erf"]) == ((2, 0) if what in found_whole else (0, 2))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_standards_gelu_is_the_one_that_is_put_together(approximate: str, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy"]
    node = helper.make_node("Gelu", ["x"], ["y"], "g", approximate=approximate)
    path = tmp_path / "gelu.onnx"
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    (found,) = kernels(read_graph(path), "onnxruntime")
    assert found.kind == ("com.microsoft::FastGelu" if approximate == "tanh" else "com.microsoft::Gelu")
    (eager,) = kernels(read_graph(path), "torch")
    assert eager.kind == "Gelu"


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch", "openvino"])
def test_of_a_table_only_the_rows_that_are_asked_for_are_read(runtime: str, tmp_path: Path) -> None:
    """Counted whole, BERT's embedding of 94 MB was most of its latency: 3.3 s were predicted for a quarter second."""
    path = tmp_path / "looked.onnx"
    export_module(Looked(), (1, 24), path)
    found = [one for one in kernels(read_graph(path), runtime, isa="avx2") if one.inputs[:1] == ((20000, 64),)]
    assert [one.number("bytes_weights") for one in found] == [24 * 64 * 4.0]
