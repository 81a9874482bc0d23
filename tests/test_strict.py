"""Strict values: what is wrong is named with file, key and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.strict import Strict, flatten, override, parse, read_yaml, to_yaml


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
    ("content", "says"),
    [
        ({"nme": "a"}, "nme: no such key; did you mean 'name'?"),
        ({}, "name: must be given"),
        ({"name": "a", "inner": {"sise": 2}}, "inner.sise: no such key; did you mean 'size'?"),
        ({"name": "a", "many": [{}, {"sise": 2}]}, "many.1.sise: no such key; did you mean 'size'?"),
        ({"name": "a", "maybe": {"sise": 2}}, "maybe.sise: no such key; did you mean 'size'?"),
        ({"name": "a", "inner": {"weight": 1}}, "inner.weight: no such key; did you mean 'other.weight'?"),
        ({"name": "a", "inner": {"weigth": 1}}, "inner.weigth: no such key; did you mean 'other.weight'?"),
        ({"name": "a", "size": 1}, "size: no such key; did you mean 'inner.size' or 'many.0.size'"),
        ({"name": "a", "other": {"zzz": 1}}, "other.zzz: no such key; There are: 'weight', 'size'"),
        ({"name": "a", "inner": {"size": "big"}}, "inner.size: Input should be a valid integer"),
        ({"name": "a", "inner": 3}, "inner: "),
    ],
)
def test_a_complaint_names_file_key_and_the_nearest_legal_one(content: dict[str, object], says: str) -> None:
    with pytest.raises(Mistake) as caught:
        parse(Outer, content, "some/file.yaml")
    assert str(caught.value).startswith("some/file.yaml:")
    assert says in str(caught.value)


def test_all_complaints_come_at_once_and_typos_first() -> None:
    with pytest.raises(Mistake) as caught:
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
    ("word", "says"),
    [
        ("steps", "an override is written key=value"),
        ("=3", "an override is written key=value"),
        ("a=[1", "the value is not YAML"),
        ("sources.4.channel=x", "the list has entries 0 to 0"),
        ("name.first=x", "there is nothing below"),
    ],
)
def test_an_override_that_fits_nowhere_is_explained(word: str, says: str) -> None:
    with pytest.raises(Mistake, match=says.replace("[", r"\[")):
        override({"sources": [{}], "name": "x"}, [word])


def test_files_that_are_no_mapping_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(Mistake, match="there is no such file"):
        read_yaml(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(Mistake, match="holds a list"):
        read_yaml(path)
    path.write_text("a: [1\n")
    with pytest.raises(Mistake, match="line 2"):
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
