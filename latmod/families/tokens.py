"""What networks over token ids do before their first block: embed, mask, and tell positions.

Masks are made by Less, not by Trilu or LessOrEqual: onnx2torch converts neither of opset 17, and what
`graph/lowering.py` and `graph/explicit.py` put in their place would be measured instead.
"""

import math

import torch
from torch import Tensor, nn

from latmod.families.choices import Choices

Turns = tuple[Tensor, Tensor]
"""The cosines and sines that turn queries and keys, tokens x width of a head."""


def _stored(*shape: int) -> nn.Parameter:
    """Hold a table that an exporter computed: a weight that is not learnt."""
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


class Embedding(nn.Module):
    """Look tokens up, and add positions and types, normed; a narrow table is widened (Lan 2019, arXiv:1909.11942)."""

    def __init__(self, draw: Choices, vocabulary: int, narrow: int, channels: int, tokens: int, *, places: bool):
        """Map ids to `channels`, through `narrow` ones; `places` adds learnt positions."""
        super().__init__()
        self.words = nn.Embedding(vocabulary, narrow)
        self.positions = nn.Embedding(tokens, narrow) if places else None
        self.types = nn.Embedding(2, narrow) if places and draw.chance(0.5) else None
        self.norm = nn.LayerNorm(narrow, eps=1e-12) if places and draw.chance(0.6) else None
        self.widen = nn.Linear(narrow, channels) if narrow < channels else None
        self.scale = math.sqrt(channels) if draw.chance(0.15) else None

    def forward(self, ids: Tensor) -> Tensor:
        """Return batch x tokens x channels."""
        x: Tensor = self.words(ids)
        if self.scale is not None:
            x = x * self.scale
        if self.types is not None:
            x = x + self.types(torch.zeros_like(ids))
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1]).unsqueeze(0))
        if self.norm is not None:
            x = self.norm(x)
        return x if self.widen is None else self.widen(x)


class Bias(nn.Module):
    """Weigh pairs of tokens by how far apart they are, in buckets (Raffel et al. 2019, arXiv:1910.10683)."""

    def __init__(self, heads: int, buckets: int = 32) -> None:
        """Learn `buckets` numbers for each head."""
        super().__init__()
        self.exact, self.table = buckets // 4, nn.Embedding(buckets, heads)

    def forward(self, apart: Tensor) -> Tensor:
        """Return 1 x heads x tokens x tokens from the distances, tokens x tokens."""
        size = apart.abs()
        far = torch.log(size.float() / self.exact) / math.log(128 / self.exact) * self.exact
        far = torch.min(self.exact + far.to(torch.int64), torch.full_like(size, 2 * self.exact - 1))
        # A graph's stored distances may lose their data; so every bucket is still in the table.
        far = torch.max(far, torch.full_like(size, self.exact))
        bucket = (apart > 0).to(torch.int64) * 2 * self.exact + torch.where(size < self.exact, size, far)
        bias: Tensor = self.table(bucket)
        return bias.permute(2, 0, 1).unsqueeze(0)


class Mask(nn.Module):
    """Say which tokens see which: all but the padding, those before, those near, by a stored table, or all.

    What hides is a large negative number, added, or a truth value if `truth`.
    """

    def __init__(self, kind: str, tokens: int, *, truth: bool, bias: Bias | None) -> None:
        """Make `kind`: `padding`, `causal`, `padded causal`, `near`, `stored` or `none`."""
        super().__init__()
        self.kind, self.truth, self.bias = kind, truth, bias
        self.table = _stored(1, 1, tokens, tokens) if kind == "stored" else None

    def forward(self, ids: Tensor) -> Tensor | None:
        """Return the mask, or None where all see all."""
        place = torch.arange(ids.shape[1])
        apart = place[None, :] - place[:, None]
        mask: Tensor | None = self._seen(ids, apart) if self.table is None else self.table
        if mask is not None and mask.dtype == torch.bool and not self.truth:
            mask = (1.0 - mask.to(torch.float32)) * -1e4
        if self.bias is None:
            return mask
        bias: Tensor = self.bias(apart)
        return bias if mask is None else bias + mask

    def _seen(self, ids: Tensor, apart: Tensor) -> Tensor | None:
        seen = {"near": apart.abs() < 17, "none": None, "padding": None}.get(self.kind, apart < 1)
        if seen is not None:
            seen = seen[None, None]
        if "padd" not in self.kind:
            return seen
        full = (ids != 0)[:, None, None, :]
        return full if seen is None else full & seen


class Rotation(nn.Module):
    """Give cosines and sines for each position: of stored tables, or computed."""

    def __init__(self, width: int, tokens: int, *, stored: bool) -> None:
        """Turn heads of `width` channels."""
        super().__init__()
        self.width = width
        self.tables = _stored(2, tokens, width) if stored else None

    def forward(self, ids: Tensor) -> Turns:
        """Return them, tokens x width."""
        if self.tables is not None:
            return self.tables[0], self.tables[1]
        rates = 1.0 / 10000.0 ** (torch.arange(0, self.width, 2).float() / self.width)
        angles = torch.arange(ids.shape[1]).float()[:, None] * rates[None, :]
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()
