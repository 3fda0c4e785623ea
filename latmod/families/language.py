"""Networks over token ids: encoders and the first pass of decoders, in the forms that exporters write."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec
from latmod.families.tokens import Bias, Embedding, Mask, Rotation, Turns

_HEAD_MACS = 1_500_000_000
"""More than this no head over a vocabulary takes, unless a spec says how many words there are."""
_CLASSES = 1_000
"""Of more classes than these, each is a word; of texts there are no more."""


def tanh_gelu(x: Tensor) -> Tensor:
    """Approximate GELU by a tanh, written out as in GPT-2."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate GELU by a sigmoid, as in CLIP."""
    return x * torch.sigmoid(1.702 * x)


def squared_relu(x: Tensor) -> Tensor:
    """Square what a ReLU leaves (So et al. 2021, arXiv:2109.08668)."""
    return functional.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "tanh gelu": tanh_gelu,
    "quick gelu": quick_gelu,
    "relu": functional.relu,
    "squared relu": squared_relu,
    "silu": functional.silu,
}


class RootNorm(nn.Module):
    """Divide by the root of the mean square, written out (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, channels: int, *, reciprocal: bool) -> None:
        """Keep the number of channels; a `reciprocal` is one operator, else one is divided."""
        super().__init__()
        self.reciprocal, self.weight = reciprocal, nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension."""
        variance = x.pow(2).mean(-1, keepdim=True) + 1e-6
        inverse = variance.sqrt().reciprocal() if self.reciprocal else torch.rsqrt(variance)
        return self.weight * (x * inverse)


class FlatLinear(nn.Module):
    """A linear layer over all tokens in a row, its weight as it is multiplied, as in GPT-2."""

    def __init__(self, channels: int, filters: int) -> None:
        """Map `channels` to `filters`."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels, filters)), nn.Parameter(torch.empty(filters))

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer over batch x tokens x channels."""
        rows = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return rows.view(*x.shape[:-1], -1)


class Form(NamedTuple):
    """Say how all blocks of a network are written.

    `parting` of queries, keys and values is `three` layers, one that is `split`, or one that is `unbound`. `product` is
    `divided` (the scores are), `scaled` (the queries are), `folded` (heads in the batch) or `builtin` (torch's own).
    """

    channels: int
    heads: int
    groups: int
    hidden: int
    parting: str
    product: str
    masking: str
    normed: bool
    order: str
    act: str
    gate: str
    linear: Callable[[int, int], nn.Module]
    norm: Callable[[int], nn.Module]


def _turned(x: Tensor, turns: Turns) -> Tensor:
    """Turn pairs of channels by the token's position (Su et al. 2021, arXiv:2104.09864)."""
    half = x.shape[-1] // 2
    return x * turns[0] + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * turns[1]


class Attention(nn.Module):
    """Attention under a mask, several heads to a key if there are fewer `groups` (Ainslie 2023, arXiv:2305.13245)."""

    def __init__(self, form: Form) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.form, self.width = form, form.channels // form.heads
        self.sizes = [form.channels, form.groups * self.width, form.groups * self.width]
        sizes = self.sizes if form.parting == "three" else [sum(self.sizes)]
        self.inner = nn.ModuleList(form.linear(form.channels, size) for size in sizes)
        self.norms = nn.ModuleList(form.norm(self.width) for _ in range(2 * form.normed))
        self.proj = form.linear(form.channels, form.channels)

    def forward(self, x: Tensor, mask: Tensor | None, turns: Turns | None) -> Tensor:
        """Run attention over batch x tokens x channels."""
        batch, tokens, channels = x.shape
        query, key, value = self._parted(x)
        if self.norms:
            query, key = self.norms[0](query), self.norms[1](key)
        if turns is not None:
            query, key = _turned(query, turns), _turned(key, turns)
        if self.form.groups < self.form.heads:
            key, value = self._repeated(key), self._repeated(value)
        if self.form.product == "builtin":
            y = functional.scaled_dot_product_attention(query, key, value, mask)
        elif self.form.product == "folded":
            shape = (batch * self.form.heads, tokens, self.width)
            scores = torch.bmm((query * self.width**-0.5).reshape(shape), key.reshape(shape).transpose(1, 2))
            scores = self._masked(scores.view(batch, self.form.heads, tokens, tokens), mask)
            weights = scores.view(-1, tokens, tokens).softmax(dim=-1)
            y = torch.bmm(weights, value.reshape(shape)).view(batch, self.form.heads, tokens, self.width)
        else:
            scaled = self.form.product == "scaled"
            scores = torch.matmul(query * self.width**-0.5 if scaled else query, key.transpose(-1, -2))
            scores = self._masked(scores if scaled else scores / math.sqrt(self.width), mask)
            y = torch.matmul(scores.softmax(dim=-1), value)
        output: Tensor = self.proj(y.transpose(1, 2).reshape(batch, tokens, channels))
        return output

    def _parted(self, x: Tensor) -> list[Tensor]:
        """Return queries, keys and values, batch x heads x tokens x width."""
        made: list[Tensor] = [layer(x) for layer in self.inner]
        if self.form.parting == "unbound":
            parts = made[0].view(*x.shape[:2], 3, self.form.heads, self.width).unbind(2)
            return [part.transpose(1, 2) for part in parts]
        if self.form.parting == "split":
            made = list(torch.split(made[0], self.sizes, dim=2))
        return [part.view(*x.shape[:2], -1, self.width).transpose(1, 2) for part in made]

    def _repeated(self, x: Tensor) -> Tensor:
        batch, groups, tokens, width = x.shape
        shape = (batch, groups, self.form.heads // groups, tokens, width)
        return x[:, :, None].expand(shape).reshape(batch, self.form.heads, tokens, width)

    def _masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return scores
        if mask.dtype != torch.bool:
            return scores + mask
        if self.form.masking == "filled":
            return scores.masked_fill(~mask, -1e4)
        return torch.where(mask, scores, torch.full((), -1e4))


class FeedForward(nn.Module):
    """Two linear layers, or three with a gate (Shazeer 2020, arXiv:2002.05202); `packed` makes two of them one."""

    def __init__(self, form: Form) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.gate, self.act = form.gate, _ACTIVATIONS[form.act]
        self.first = form.linear(form.channels, form.hidden * (2 if form.gate == "packed" else 1))
        self.up = form.linear(form.channels, form.hidden) if form.gate == "apart" else None
        self.second = form.linear(form.hidden, form.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers over batch x tokens x channels."""
        y: Tensor = self.first(x)
        if self.gate == "packed":
            y, other = y.chunk(2, dim=-1)
            y = self.act(y) * other
        else:
            y = self.act(y) if self.up is None else self.act(y) * self.up(x)
        output: Tensor = self.second(y)
        return output


class Block(nn.Module):
    """Attention and a feed-forward network with shortcuts; a norm after each, before each, or one before both."""

    def __init__(self, form: Form) -> None:
        """Keep the number of channels; `order` is `post`, `pre` or `parallel`."""
        super().__init__()
        self.order = form.order
        self.attention, self.mlp = Attention(form), FeedForward(form)
        self.norms = nn.ModuleList(form.norm(form.channels) for _ in range(1 if form.order == "parallel" else 2))

    def forward(self, x: Tensor, mask: Tensor | None, turns: Turns | None) -> Tensor:
        """Run the block."""
        norms = self.norms
        if self.order == "post":
            y: Tensor = norms[0](self.attention(x, mask, turns) + x)
            output: Tensor = norms[1](self.mlp(y) + y)
        elif self.order == "parallel":
            y = norms[0](x)
            output = self.attention(y, mask, turns) + self.mlp(y) + x
        else:
            y = x + self.attention(norms[0](x), mask, turns)
            output = y + self.mlp(norms[1](y))
        return output


class LanguageModel(nn.Module):
    """Embed, run the blocks, and end in classes of a text, of each token, or in a word for each.

    `end` reads the `first` token, the `mean` of those that are no padding, all `tokens`, or all, whose head is then
    `tied`: the embedding's own table.
    """

    def __init__(
        self, embedding: Embedding, mask: Mask, rotation: Rotation | None, blocks: list[Block], norm: nn.Module,
        head: nn.Module, end: str,
    ) -> None:  # fmt: skip
        """Take the parts; a block may be there several times."""
        super().__init__()
        self.embedding, self.mask, self.rotation, self.blocks = embedding, mask, rotation, nn.ModuleList(blocks)
        self.norm, self.head, self.end = norm, head, end

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits."""
        x, mask = self.embedding(ids), self.mask(ids)
        turns = None if self.rotation is None else self.rotation(ids)
        for block in self.blocks:
            x = block(x, mask, turns)
        x = self.norm(x)
        if self.end == "first":
            x = x[:, 0]
        elif self.end == "mean":
            full = (ids != 0).unsqueeze(-1).expand(x.shape).to(torch.float32)
            x = (x * full).sum(1) / full.sum(1).clamp(min=1e-9)
        logits: Tensor = self.head(x)
        return functional.linear(logits, self.embedding.words.weight) if self.end == "tied" else logits


def _head(draw: Choices, end: str, channels: int, narrow: int, vocabulary: int, classes: int) -> nn.Module:
    if end == "words":
        return nn.Linear(channels, vocabulary, bias=False)
    if end == "tied":
        dense = narrow < channels or draw.chance(0.3)
        return nn.Sequential(*[nn.Linear(channels, narrow), nn.GELU(), nn.LayerNorm(narrow)] if dense else [])
    pooled = [nn.Linear(channels, channels), nn.Tanh()] if end == "first" else []
    return nn.Sequential(*pooled, nn.Linear(channels, classes))


def _form(draw: Choices, spec: GeneratedSpec, *, rotary: bool) -> Form:
    """Draw how the blocks are written: rotary networks more like Llama, others more like BERT and GPT-2."""
    width = draw.pick((32, 48, 64, 128), (0.3, 0.05, 0.6, 0.05))
    heads = max(1, round(spec.width / width))
    channels = heads * width
    shares = [share for share in (2, 3, 4, 8) if heads % share == 0] or [1]
    groups = heads // draw.pick(shares) if rotary and draw.chance(0.6) else heads
    way = "unbound" if groups == heads else "split"
    rooted = draw.chance(0.7 if rotary else 0.15)
    root, eps, bias = draw.chance(0.5), draw.pick((1e-12, 1e-5)), draw.chance(0.25 if rotary else 0.9)
    flat = not rotary and draw.chance(0.2)
    gate = draw.pick(("none", "apart", "packed"), (0.2, 0.6, 0.2) if rotary else (0.85, 0.1, 0.05))
    usual = ("silu", "gelu", "tanh gelu", "quick gelu", "relu", "squared relu")
    return Form(
        channels=channels,
        heads=heads,
        groups=groups,
        hidden=max(8, round(channels * draw.pick((2.5, 8 / 3, 3.0, 4.0), (0.15, 0.2, 0.15, 0.5)) / 8) * 8),
        parting=draw.pick(("three", "split", way), (0.2, 0.7, 0.1) if flat else (0.7, 0.15, 0.15)),
        product=draw.pick(("divided", "scaled", "folded", "builtin"), (0.35, 0.15, 0.1, 0.4)),
        masking=draw.pick(("filled", "chosen")),
        normed=rotary and draw.chance(0.3),
        order=draw.pick(("post", "pre", "parallel"), (0.0, 0.85, 0.15) if rotary else (0.55, 0.4, 0.05)),
        act=draw.pick(usual, (0.5, 0.15, 0.2, 0.05, 0.05, 0.05) if rotary else (0.03, 0.42, 0.25, 0.1, 0.15, 0.05)),
        gate=gate,
        linear=FlatLinear if flat else lambda a, b: nn.Linear(a, b, bias=bias),
        norm=lambda size: RootNorm(size, reciprocal=root) if rooted else nn.LayerNorm(size, eps=eps),
    )


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("language", spec.variant)
    positions = draw.pick(("learnt", "rotary", "relative"), (0.5, 0.35, 0.15))
    form = _form(draw, spec, rotary=positions == "rotary")
    end = draw.pick(("first", "mean", "tokens", "words", "tied"), (0.25, 0.15, 0.15, 0.25, 0.2))
    vocabulary = int(draw.between(1_000, 50_000))
    if spec.classes > _CLASSES:
        vocabulary = spec.classes
    elif end in ("words", "tied"):
        vocabulary = max(1_000, min(vocabulary, _HEAD_MACS // (spec.side * form.channels)))
    narrow = form.channels // 2 if draw.chance(0.2) else form.channels
    embedding = Embedding(draw, vocabulary, narrow, form.channels, spec.side, places=positions == "learnt")
    kinds = ("padding", "causal", "padded causal", "near", "stored", "none")
    mask = Mask(
        draw.pick(kinds, (0.3, 0.2, 0.15, 0.05, 0.15, 0.15)),
        spec.side,
        truth=positions != "relative" and draw.chance(0.4),
        bias=Bias(form.heads) if positions == "relative" else None,
    )
    width, stored = form.channels // form.heads, draw.chance(0.5)
    rotation = Rotation(width, spec.side, stored=stored) if positions == "rotary" else None
    shared = draw.chance(0.1)
    blocks = [Block(form)] * spec.depth if shared else [Block(form) for _ in range(spec.depth)]
    norm = nn.Identity() if form.order == "post" else form.norm(form.channels)
    head = _head(draw, end, form.channels, narrow, vocabulary, min(spec.classes, _CLASSES))
    return LanguageModel(embedding, mask, rotation, blocks, norm, head, end)
