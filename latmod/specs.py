"""Read a space from TOML and draw the specs of its models: seeded, spread out, without duplicates."""

import itertools
import math
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar, cast

import msgspec

from latmod.errors import SpecError

T = TypeVar("T")
Scalar = bool | int | float | str
Count = Annotated[int, msgspec.Meta(ge=0)]

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class SpecFamily(Protocol):
    """What a space needs to know about the family that it draws from."""

    @property
    def name(self) -> str:
        """Name the family as spaces and records do."""

    @property
    def spec_type(self) -> type[msgspec.Struct]:
        """Give the frozen record whose annotations hold the fields and their bounds."""

    def model_id(self, spec: msgspec.Struct) -> str:
        """Name a model after its spec: readable, stable, fit for a file name."""


class Axis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Say how one field varies: one of `values`, or a whole number from `low` to `high`, both included.

    `weights` says how often each of the values is drawn, in proportion; without it they are equally frequent.
    """

    values: tuple[Scalar, ...] | None = None
    weights: tuple[Annotated[float, msgspec.Meta(gt=0)], ...] = ()
    low: int | None = None
    high: int | None = None
    scale: Literal["uniform", "log"] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError, which msgspec reports with its path, unless the axis holds at least one value."""
        if self.values is not None:
            if (self.low, self.high, self.scale) != (None, None, None):
                raise ValueError("give either values or low, high and scale")
            if not self.values or len(set(self.values)) < len(self.values):
                raise ValueError("values must be different ones, at least one")
            if self.weights and len(self.weights) != len(self.values):
                raise ValueError(f"{len(self.weights)} weights for {len(self.values)} values")
        elif self.weights:
            raise ValueError("weights belong to values")
        elif self.low is None or self.high is None or self.scale is None:
            raise ValueError('give values, or low, high and scale ("uniform" or "log")')
        elif self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        elif self.scale == "log" and self.low < 1:
            raise ValueError(f"low = {self.low} has no logarithm: it must be at least 1")

    @property
    def size(self) -> int:
        """Count the values."""
        if self.values is not None:
            return len(self.values)
        assert self.low is not None
        assert self.high is not None
        return self.high - self.low + 1

    def value(self, index: int) -> Scalar:
        """Return the value at `index`, which counts from 0 to `size - 1`."""
        if self.values is not None:
            return self.values[index]
        assert self.low is not None
        return self.low + index

    def index(self, stratum: int, strata: int) -> int:
        """Map one of `strata` equal parts of the axis to the index of a value, the outermost ones to the ends."""
        if self.weights:
            # Each value covers a part of the axis as long as its weight; a stratum stands for its middle.
            reached = (stratum + 0.5) / strata * sum(self.weights)
            return next((i for i, end in enumerate(itertools.accumulate(self.weights)) if reached < end), self.size - 1)
        if self.scale != "log":
            return min(stratum * self.size // max(strata - 1, 1), self.size - 1)
        assert self.low is not None
        growth = math.log((self.low + self.size) / self.low)
        # The nudge makes powers that are whole numbers come out alike on every platform's exp().
        drawn = math.floor(self.low * math.exp(growth * stratum / max(strata - 1, 1)) + 1e-9)
        return min(drawn - self.low, self.size - 1)


Draw = Scalar | Axis | tuple[Scalar | Axis, ...]
Listed = Scalar | tuple[Scalar, ...]


class Space(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Describe a set of specs: models listed by hand, and `count` models drawn with `seed`.

    `draw` gives each field a fixed value or an axis; a field with several items takes a list of those. It goes to and
    from plain builtins by `msgspec.to_builtins` and `msgspec.convert`.
    """

    schema: Literal[1]
    family: str
    count: Count = 0
    seed: Count = 0
    draw: dict[str, Draw] = {}
    model: tuple[dict[str, Listed], ...] = ()


def load_space(path: Path, families: Mapping[str, SpecFamily]) -> Space:
    """Read a space and check it against its family. Raise SpecError, naming file and key, if it cannot be drawn."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not a TOML file: {error}") from error
    for place, table, kind in _tables(raw):
        for key, value in table.items():
            _convert(value, kind, f"{path}: ", f"{place}.{key}")
    space = _convert(raw, Space, f"{path}: ")
    draw(space, families, source=str(path))
    return space


def draw(
    space: Space, families: Mapping[str, SpecFamily], *, limit: int | None = None, source: str = "space"
) -> list[tuple[str, msgspec.Struct]]:
    """Return the name and the spec of each model: the listed ones, then the drawn ones.

    Every prefix is spread over the whole space, and `limit` cuts the list to one. Raise SpecError, naming `source` and
    key, if the family is unknown, a value is out of its bounds, or `count` asks for more specs than there are.
    """
    family = families.get(space.family)
    if family is None:
        raise SpecError(f"{source}: family: {space.family!r} is unknown; choose one of {', '.join(sorted(families))}")
    if not space.model and not space.count:
        raise SpecError(f"{source}: count: the space is empty; give count and [draw], or a [[model]]")
    if bool(space.draw) != bool(space.count):
        missing = "count" if space.draw else "draw"
        raise SpecError(f"{source}: {missing}: count and [draw] only work together; add it")
    models: dict[str, msgspec.Struct] = {}
    for position, listed in enumerate(space.model):
        name, spec = _listed(listed, family, f"{source}: ", f"model[{position}]")
        if name in models or spec in models.values():
            raise SpecError(f"{source}: model[{position}]: {name} is listed twice; remove one")
        models[name] = spec
    if space.count:
        models |= _drawn(space, family, source, frozenset(models.values()))
    return list(models.items())[:limit]


def flat_fields(spec: Mapping[str, object]) -> dict[str, bool | int | float | str]:
    """Return a spec's plain fields as columns; the items of `blocks` become `blocks1`, `blocks2`, …"""
    columns: dict[str, bool | int | float | str] = {}
    for field, value in spec.items():
        items = value if isinstance(value, list | tuple) else (value,)
        for position, item in enumerate(items, start=1):
            if not isinstance(item, Scalar):
                raise SpecError(f"{field}: {item!r} is no plain value, so it cannot be a column")
            columns[field if items is not value else f"{field}{position}"] = item
    return columns


def _listed(fields: Mapping[str, Listed], family: SpecFamily, source: str, key: str) -> tuple[str, msgspec.Struct]:
    spec = _convert({field: value for field, value in fields.items() if field != "name"}, family.spec_type, source, key)
    name = fields.get("name", family.model_id(spec))
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise SpecError(f"{source}{key}.name: {name!r} must be letters, digits, '.', '_' and '-', as it names a file")
    return name, spec


def _drawn(
    space: Space, family: SpecFamily, source: str, taken: frozenset[msgspec.Struct]
) -> dict[str, msgspec.Struct]:
    axes = _axes(space.draw)
    sizes = {key: axis.size for key, axis in axes.items()}
    total = math.prod(sizes.values())
    if space.count > total:
        raise SpecError(f"{source}: count: {space.count} models asked for, but [draw] has only {total} different ones")
    for end in (0, -1):
        corner = {key: end % size for key, size in sizes.items()}
        _convert(_fields(space.draw, axes, corner), family.spec_type, f"{source}: ", "draw")
    specs: dict[str, msgspec.Struct] = {}
    for indices in _distinct(_spread(axes, space.count, space.seed), sizes):
        spec = _convert(_fields(space.draw, axes, indices), family.spec_type, f"{source}: ", "draw")
        if spec not in taken:
            specs[family.model_id(spec)] = spec
    return specs


def _axes(fields: Mapping[str, Draw]) -> dict[tuple[str, int], Axis]:
    """Return the axes by field and position; a fixed value is an axis with one value."""
    return {
        (field, position): part if isinstance(part, Axis) else Axis(values=(part,))
        for field, parts in fields.items()
        for position, part in enumerate(parts if isinstance(parts, tuple) else (parts,))
    }


def _fields(
    fields: Mapping[str, Draw], axes: Mapping[tuple[str, int], Axis], indices: Mapping[tuple[str, int], int]
) -> dict[str, Listed]:
    def value(field: str, position: int) -> Scalar:
        return axes[field, position].value(indices[field, position])

    return {
        field: tuple(value(field, position) for position in range(len(parts)))
        if isinstance(parts, tuple)
        else value(field, 0)
        for field, parts in fields.items()
    }


def _spread(axes: Mapping[tuple[str, int], Axis], count: int, seed: int) -> list[dict[tuple[str, int], int]]:
    """Return `count` points that are a Latin hypercube as a whole and evenly spread in every prefix.

    The points of a Halton sequence, its digits permuted by the seed (Braaten and Weller 1979), are replaced on each
    axis by their ranks: one point in each of `count` equal parts.
    """
    generator = random.Random(seed)
    points: list[dict[tuple[str, int], int]] = [dict.fromkeys(axes, 0) for _ in range(count)]
    varying = sorted((axis.size, key) for key, axis in axes.items() if axis.size > 1)
    for base, (_, key) in zip(_primes(), varying, strict=False):
        # random.shuffle may change between Python versions; a sort by random() does not.
        digits = sorted(range(base), key=lambda _: generator.random())
        by_position = sorted(range(count), key=lambda number: _mirrored(number, base, digits, count))
        for stratum, number in enumerate(by_position):
            points[number][key] = axes[key].index(stratum, count)
    return points


def _mirrored(number: int, base: int, digits: list[int], count: int) -> int:
    """Return a number with its digits permuted and in reverse order, as many as numbers below `count` have."""
    mirrored, place = 0, 1
    while place < count:
        number, digit = divmod(number, base)
        mirrored = mirrored * base + digits[digit]
        place *= base
    return mirrored


def _primes() -> Iterator[int]:
    return (number for number in itertools.count(2) if all(number % divisor for divisor in range(2, number)))


def _distinct(
    points: list[dict[tuple[str, int], int]], sizes: Mapping[tuple[str, int], int]
) -> list[dict[tuple[str, int], int]]:
    """Move every point that repeats an earlier one to the next free place, counting along the finest axis first."""
    order = sorted(sizes, key=lambda key: -sizes[key])
    seen: set[tuple[int, ...]] = set()
    distinct = []
    for point in points:
        place = dict(point)
        while tuple(place[key] for key in order) in seen:
            for key in order:
                place[key] = (place[key] + 1) % sizes[key]
                if place[key]:
                    break
        seen.add(tuple(place[key] for key in order))
        distinct.append(place)
    return distinct


def _tables(raw: Mapping[str, object]) -> Iterator[tuple[str, dict[str, object], type[object]]]:
    """Yield the tables whose keys msgspec does not name, with the type of their values and where they stand."""
    if isinstance(drawn := raw.get("draw"), dict):
        yield "draw", drawn, cast("type[object]", Draw)
    if isinstance(listed := raw.get("model"), list):
        for position, model in enumerate(listed):
            if isinstance(model, dict):
                yield f"model[{position}]", model, cast("type[object]", Listed)


def _convert(value: object, kind: type[T], source: str, key: str = "") -> T:
    """Convert plain values, or raise SpecError that says "message - at `$.width`" as "draw.width: message"."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).rpartition(" - at `$")
        if not message:
            message, path = path, ""
        key = f"{key}{path.rstrip('`')}".lstrip(".")
        for problem, advice in (
            ("contains unknown", "unknown key; correct or remove it"),
            ("missing required", "missing"),
        ):
            if found := re.fullmatch(rf"Object {problem} field `(.*)`", message):
                key, message = f"{key}.{found[1]}".lstrip("."), advice
        raise SpecError(f"{source}{key}: {message}") from error
