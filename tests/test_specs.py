import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latmod.errors import SpecError
from latmod.families import FAMILIES
from latmod.families.resnet import ResNetSpec
from latmod.specs import Axis, Space, draw, flat_fields, load_space

SPECS = Path(__file__).parent.parent / "specs"
SHIPPED = sorted(path.name for path in SPECS.glob("*.toml"))
STUDY = ("resnet-fixed-width.toml", "resnet-varied-width.toml")

SPACE = """
schema = 1
family = "resnet"
count = 5
seed = 1
[draw]
block = { values = ["basic", "bottleneck"] }
blocks = [{ low = 1, high = 12, scale = "log" }, 2, { low = 1, high = 9, scale = "uniform" }, 2]
width = 64
"""


GOLDEN = [
    "resnet-basic-12.2.3.2-w64",
    "resnet-bottleneck-6.2.7.2-w64",
    "resnet-bottleneck-1.2.1.2-w64",
    "resnet-bottleneck-1.2.5.2-w64",
    "resnet-basic-3.2.9.2-w64",
]


def load(tmp_path: Path, text: str) -> Space:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return load_space(path, FAMILIES)


def space(count: int, seed: int, width: Axis | int, *blocks: Axis | int) -> Space:
    fields = {"block": Axis(values=("basic", "bottleneck")), "blocks": blocks, "width": width}
    return Space(schema=1, family="resnet", count=count, seed=seed, draw=fields)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_draw_what_they_promise(name: str) -> None:
    loaded = load_space(SPECS / name, FAMILIES)
    models = draw(loaded, FAMILIES)
    assert len(models) == loaded.count + len(loaded.model)
    assert len({name for name, _ in models}) == len({spec for _, spec in models}) == len(models)


@pytest.mark.parametrize("name", STUDY)
def test_study_spaces_cover_the_whole_range(name: str) -> None:
    columns = [flat_fields(msgspec.to_builtins(spec)) for _, spec in draw(load_space(SPECS / name, FAMILIES), FAMILIES)]
    for field, low, high in (("blocks1", 1, 12), ("blocks2", 1, 32), ("blocks3", 1, 144), ("blocks4", 1, 12)):
        values = [column[field] for column in columns]
        assert (min(values), max(values)) == (low, high)
        middle = sorted(values)[len(values) // 2]
        assert abs(math.log(middle / math.sqrt(low * (high + 1)))) < 0.5
    widths = {column["width"] for column in columns}
    assert widths == {64} if name == "resnet-fixed-width.toml" else (min(widths), max(widths)) == (1, 192)
    assert sum(column["block"] == "basic" for column in columns) == len(columns) // 2


@pytest.mark.parametrize("name", STUDY)
def test_a_prefix_is_spread_over_the_space(name: str) -> None:
    models = draw(load_space(SPECS / name, FAMILIES), FAMILIES)
    prefix = draw(load_space(SPECS / name, FAMILIES), FAMILIES, limit=12)
    assert prefix == models[:12]
    stages = [spec.blocks[2] for _, spec in prefix]
    assert min(stages) <= 3
    assert max(stages) >= 50
    assert 5 <= sum(spec.block == "basic" for _, spec in prefix) <= 7


def test_a_seed_draws_the_same_models_on_every_platform(tmp_path: Path) -> None:
    assert [name for name, _ in draw(load(tmp_path, SPACE), FAMILIES)] == GOLDEN
    other = load(tmp_path, SPACE.replace("seed = 1", "seed = 2"))
    assert [name for name, _ in draw(other, FAMILIES)] != GOLDEN


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 60),
    seed=st.integers(0, 2**40),
    low=st.integers(1, 30),
    length=st.integers(0, 100),
    scale=st.sampled_from(("uniform", "log")),
)
def test_draws_are_distinct_stay_in_range_and_reach_both_ends(
    count: int, seed: int, low: int, length: int, scale: str
) -> None:
    axis = Axis(low=low, high=low + length, scale=scale)
    wide = space(count, seed, Axis(values=(8, 16, 24)), 2, 2, axis, Axis(low=1, high=12, scale="log"))
    specs = [spec for _, spec in draw(wide, FAMILIES)]
    stages = [spec.blocks[2] for spec in specs]
    assert len(set(specs)) == count
    assert (min(stages), max(stages)) == (low, low + length)


def test_a_space_can_be_drawn_whole() -> None:
    whole = space(2 * 4 * 3, 5, Axis(low=1, high=4, scale="log"), 1, 1, 1, Axis(values=(1, 5, 7)))
    assert len({spec for _, spec in draw(whole, FAMILIES)}) == 24
    with pytest.raises(SpecError, match=r"count: 25 models asked for, but \[draw\] has only 24"):
        draw(msgspec.structs.replace(whole, count=25), FAMILIES)


@pytest.mark.parametrize(("low", "high"), [(1, 2), (1, 144), (3, 26), (1, 7)])
def test_log_axis_gives_each_value_its_share_of_the_logarithm(low: int, high: int) -> None:
    axis, strata = Axis(low=low, high=high, scale="log"), 4000
    drawn = [axis.value(axis.index(stratum, strata)) for stratum in range(strata)]
    for value in {low, high, (low + high) // 2}:
        share = math.log((value + 1) / value) / math.log((high + 1) / low)
        assert drawn.count(value) / strata == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("name", SHIPPED)
def test_spaces_go_through_json(name: str) -> None:
    loaded = load_space(SPECS / name, FAMILIES)
    assert msgspec.convert(msgspec.to_builtins(loaded), Space) == loaded
    assert msgspec.json.decode(msgspec.json.encode(loaded), type=Space) == loaded


@settings(max_examples=50)
@given(st.builds(ResNetSpec, block=st.just("bottleneck"), blocks=st.tuples(*4 * [st.integers(1, 12)]),
                 width=st.integers(1, 192), side=st.integers(32, 512), batch=st.integers(1, 9),
                 widen=st.sampled_from((1, 1.5, 2))))  # fmt: skip
def test_specs_go_through_json(spec: ResNetSpec) -> None:
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ResNetSpec) == spec


def test_fields_become_columns() -> None:
    spec = ResNetSpec(block="basic", blocks=(2, 3, 4, 5))
    assert flat_fields(msgspec.to_builtins(spec)) == {
        "block": "basic", "blocks1": 2, "blocks2": 3, "blocks3": 4, "blocks4": 5,
        "width": 64, "widen": 1, "side": 224, "batch": 1, "classes": 1000,
    }  # fmt: skip


def test_listed_models_stand_beside_drawn_ones_once(tmp_path: Path) -> None:
    first = draw(load(tmp_path, SPACE), FAMILIES)[0][1]
    listed = f'[[model]]\nname = "mine"\nblock = "{first.block}"\nblocks = {list(first.blocks)}\n'
    both = draw(load(tmp_path, SPACE + listed), FAMILIES)
    assert both[0] == ("mine", first)
    assert len(both) == len({spec for _, spec in both}) == 5


MODEL = '\n[[model]]\nblock = "basic"\nblocks = [1, 1, 1, 1]\n'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count = 5", "count = 5\ncolour = 1", "colour: unknown key"),
        ("count = 5", 'count = "5"', "count: Expected `int`"),
        ("count = 5", "count = -5", "count: Expected `int` >= 0"),
        ("count = 5", "count = 999", "count: 999 models asked for, but .draw. has only 216"),
        ("count = 5", "", "count: "),
        ("schema = 1", "schema = 2", "schema: Invalid enum value 2"),
        ("schema = 1", "", "schema: missing"),
        ('"resnet"', '"resnext"', "family: 'resnext' is unknown"),
        ("width = 64", "width = 193", "draw.width: Expected `int` <= 192"),
        ("width = 64", "width = 6.5", "draw.width: Expected `int`"),
        ("width = 64", "depth = 64", "draw.depth: unknown key"),
        ("width = 64", "width = { low = 0, high = 9, scale = 'uniform' }", "draw.width: Expected `int` >= 1"),
        ("width = 64", "width = { low = 0, high = 9, scale = 'log' }", "draw.width: low = 0 has no logarithm"),
        ("width = 64", "width = { low = 9, high = 8, scale = 'log' }", "draw.width: low = 9 is above high = 8"),
        ("width = 64", "width = { low = 9, high = 12 }", "draw.width: give values, or low, high and scale"),
        ("width = 64", "width = { low = 9, high = 12, scale = 'cubic' }", "draw.width.scale: Invalid enum"),
        ("width = 64", "width = { low = 9, high = 12, scale = 'log', step = 2 }", "draw.width.step: unknown key"),
        ("width = 64", "width = { values = [] }", "draw.width: values must be"),
        ("width = 64", "width = { values = [8, 500, 9] }", "draw.width: Expected `int` <= 192"),
        ("width = 64", "width = 64\nwiden = 2", "draw: widen = 2 needs bottleneck blocks"),
        ("high = 12", "high = 13", r"draw.blocks\[0\]: Expected `int` <= 12"),
        ("2, {", "{", "draw.blocks: Expected `array` of length 4"),
        ("block = ", "blocked = ", "draw.blocked: unknown key|draw.block: missing"),
        ("width = 64", f"width = 64{MODEL}width = 500", r"model\[0\].width: Expected `int` <= 192"),
        ("width = 64", f"width = 64{MODEL}name = '../x'", r"model\[0\].name: '../x' must be letters"),
        ("width = 64", f"width = 64{MODEL}{MODEL}", r"model\[1\]: resnet-basic-1.1.1.1-w64 is listed twice"),
        ("[draw]", "[draw", "not a TOML file"),
    ],
)
def test_bad_spaces_give_one_line_with_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SPACE
    with pytest.raises(SpecError, match=message) as caught:
        load(tmp_path, SPACE.replace(old, new, 1))
    assert str(caught.value).startswith(str(tmp_path / "space.toml"))
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere.toml: cannot be read: No such file"):
        load_space(tmp_path / "nowhere.toml", FAMILIES)
