"""Strict values: what is wrong is named with file, key and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hpc_isl.errors import UserError, nearest
from hpc_isl.recipes.strict import Strict, flatten, override, parse, read_yaml, to_yaml, value_of, written


class Inner(Strict):
    """One."""

    size: int = 1
    """its size"""


class Other(Strict):
    """Another."""

    weight: float = 1.0
    """its weight"""
    size: int = 2
    """also a size"""


class Outer(Strict):
    """Several."""

    name: str
    """its name"""
    inner: Inner = Inner()
    """one"""
    many: list[Inner] = []
    """more"""
    maybe: Inner | None = None
    """none, often"""
    other: Other = Other()
    """another"""


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer(name="a").name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ({"nme": "a"}, "nme: no such key; did you mean 'name'?"),
        ({}, "name: must be given"),
        ({"name": "a", "inner": {"sise": 2}}, "inner.sise: no such key; did you mean 'size'?"),
        ({"name": "a", "many": [{}, {"sise": 2}]}, "many.1.sise: no such key; did you mean 'size'?"),
        ({"name": "a", "maybe": {"sise": 2}}, "maybe.sise: no such key; did you mean 'size'?"),
        ({"name": "a", "inner": {"weight": 1}}, "inner.weight: no such key; did you mean 'other.weight'?"),
        ({"name": "a", "inner": {"weigth": 1}}, "inner.weigth: no such key; did you mean 'other.weight'?"),
        ({"name": "a", "size": 1}, "size: no such key; did you mean 'inner.size' or 'many.0.size'"),
        ({"name": "a", "other": {"zzz": 1}}, "other.zzz: no such key; there are: 'weight', 'size'"),
        ({"name": "a", "inner": {"size": "big"}}, "inner.size: Input should be a valid integer"),
        ({"name": "a", "inner": 3}, "inner: "),
    ],
)
def test_a_complaint_names_file_key_and_the_nearest_legal_one(
    content: dict[str, object], messages: str
) -> None:
    with pytest.raises(UserError) as caught:
        parse(Outer, content, "some/file.yaml")
    assert str(caught.value).startswith("some/file.yaml:")
    assert messages in str(caught.value)


def test_all_complaints_come_at_once_and_typos_first() -> None:
    with pytest.raises(UserError) as caught:
        parse(Outer, {"nme": "a", "inner": {"size": "big"}}, "f")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["f", "nme", "name", "inner.size"]


def test_overrides_reach_keys_lists_and_what_is_not_there_yet() -> None:
    content = {"train": {"steps": 1}, "sources": [{"channel": "BF"}], "net": None}
    words = ["train.steps=2", "sources.0.channel=DIC", "net.encoder=resnet18", "plates=[a, b]", "x="]
    assert override(content, words) == {
        "train": {"steps": 2}, "sources": [{"channel": "DIC"}], "net": {"encoder": "resnet18"},
        "plates": ["a", "b"], "x": None,
    }  # fmt: skip
    assert content["train"] == {"steps": 1}, "the content given stays as it was"


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("steps", "an override is written key=value"),
        ("=3", "an override is written key=value"),
        ("a=[1", "the value is not YAML"),
        ("sources.4.channel=x", "the list has entries 0 to 0"),
        ("name.first=x", "there is nothing below"),
    ],
)
def test_an_override_that_fits_nowhere_is_explained(word: str, messages: str) -> None:
    with pytest.raises(UserError, match=messages.replace("[", r"\[")):
        override({"sources": [{}], "name": "x"}, [word])


class Texts(Strict):
    """Keys of several types."""

    text: str = ""
    """a text"""
    names: dict[str, str] = {}
    """texts by text"""
    several: list[str] = []
    """texts"""
    either: int | list[int] | str = 0
    """a number before a text"""
    number: float = 0
    """a number"""
    whole: int = 0
    """a whole number"""
    yes: bool = False
    """or no"""
    anything: dict[str, object] = {}
    """of any type"""


@pytest.mark.parametrize(
    "text", ["1", "01", "007", "1.50", "0x10", "1_000", "12:30:00", "2026-01-31", "no", "+1", "truely"]
)
def test_where_text_is_meant_a_user_gets_what_was_typed(text: str) -> None:
    """`pattern.channels={01: DAPI}` names the channel that files call 01: no quotes, and not 1."""
    words = [f"text={text}", f"names={{{text}: {text}}}", f"several=[{text}]", f"anything={{a: [{text}]}}"]
    found = parse(Texts, override({}, words), "x")
    assert (found.text, found.names, found.several) == (text, {text: text}, [text])
    again = parse(Texts, value_of(to_yaml(found)), "again")
    assert again == found
    assert str(again.anything["a"][0]) == text  # type: ignore[index]
    assert str(value_of(written(found.anything))["a"][0]) == text


def test_where_numbers_are_meant_they_are_numbers() -> None:
    words = ["either=3", "number=1.50", "whole=1_000", "yes=yes"]
    found = parse(Texts, override({}, words), "x")
    assert (found.either, found.number, found.whole, found.yes) == (3, 1.5, 1000, True)
    assert [type(one) for one in (found.either, found.number, found.whole)] == [int, float, int]
    assert parse(Texts, override({}, ["either=[1, 2]"]), "x").either == [1, 2]
    with pytest.raises(
        UserError, match=r"text: text is expected; in quotes it is one, as in text='\"true\"'"
    ):
        parse(Texts, override({}, ["text=true"]), "x")


def test_files_that_are_no_mapping_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(UserError, match="there is no such file"):
        read_yaml(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(UserError, match="holds a list"):
        read_yaml(path)
    path.write_text("a: [1\n")
    with pytest.raises(UserError, match="line 2"):
        read_yaml(path)
    path.write_text("")
    assert read_yaml(path) == {}


def test_yaml_reads_back_to_an_equal_value() -> None:
    value = Outer(name="ä 'b' \"c\": {d}", many=[Inner(size=3)], maybe=Inner())
    assert parse(Outer, yaml.safe_load(to_yaml(value)), "x") == value


PLAIN = st.none() | st.booleans() | st.integers() | st.text("abc", max_size=3)
TREES = st.recursive(
    PLAIN, lambda sub: st.dictionaries(st.text("xyz", min_size=1, max_size=3), sub, min_size=1)
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3), TREES, min_size=1))
def test_flat_keys_are_what_override_takes(tree: dict[str, object]) -> None:
    words = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in flatten(tree).items()
    ]
    rebuilt = override({}, [word.replace("\n...", "").strip() for word in words])
    assert rebuilt == tree


def test_nearest_names_the_closest_and_the_rest() -> None:
    assert nearest("trian", ["train", "net"]) == "did you mean 'train'? There are: 'train', 'net'"
    assert nearest("x", []) == "there are none"
    assert nearest("zzz", map(str, range(40))).endswith(", …")
