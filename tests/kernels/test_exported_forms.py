"""The rules against onnxruntime on forms that exporters write and no generated family has: those of timm's networks."""

from collections import Counter
from pathlib import Path

import pytest
from engine_told import expected_and_told
from exports import export_module

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


class Enlarged(torch.nn.Module):
    """Maps made larger, by a factor or to a size: some stay in the layout of the convolutions."""

    def __init__(self, mode: str, *, sized: bool) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 32, 3)
        self.options = {"size": (32, 32)} if sized else {"scale_factor": 2.0}
        self.options |= {"mode": mode} | ({} if mode == "nearest" else {"align_corners": False})

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        return self.after(torch.nn.functional.interpolate(self.before(x), **self.options))


FORMS = {
    "attention": (Attention, (1, 49, 64)),
    "normed attention": (lambda: Attention(normed=True), (1, 49, 64)),
    "talking heads": (lambda: Attention(talking=True), (1, 49, 64)),
    "rows and images": (RowsAndImages, (1, 196, 32)),
    "padded": (Padded, (1, 3, 64, 64)),
    "cut": (Cut, (1, 3, 32, 32)),
    "enlarged to a size": (lambda: Enlarged("nearest", sized=True), (1, 3, 16, 16)),
    "enlarged by a factor": (lambda: Enlarged("nearest", sized=False), (1, 3, 16, 16)),
    "interpolated to a size": (lambda: Enlarged("bilinear", sized=True), (1, 3, 16, 16)),
    "interpolated by a factor": (lambda: Enlarged("bilinear", sized=False), (1, 3, 16, 16)),
}


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
    for op in ("Pad", "Slice", "Transpose", "Softmax", "Split", "Conv", "ReorderInput", "Resize", "Upsample"):
        assert ours[op] == theirs[op], (op, ours, theirs)
