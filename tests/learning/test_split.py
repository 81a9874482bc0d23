from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_isl.errors import UserError
from hpc_isl.learning.data import split as splits
from hpc_isl.learning.data.split import Split, draw
from hpc_isl.plates.plate import Field, FieldKey, Plate, well_name
from hpc_isl.plates.store import Index
from hpc_isl.recipes.training import SplitRecipe

HEAD = "plate,well,field,part\n"


def plate(wells: int, fields: int = 2, name: str = "P01", plate_map: dict[str, Any] | None = None) -> Index:
    """As much of an index as a split needs."""
    names = [well_name(i // 12, i % 12) for i in range(wells)]
    keys = [FieldKey(well, str(field + 1)) for well in names for field in range(fields)]
    found = Plate(name, ("A",), ("1",), (), tuple(Field(key, (1, 1, 1, 8, 8), "uint16") for key in keys))
    return cast(Index, SimpleNamespace(plate=found, plate_map=plate_map or {}))


def wells_of(split: Split, part: str) -> set[tuple[str, str]]:
    return {(plate, well) for (plate, well, _), found in split.parts.items() if found == part}


@given(wells=st.integers(1, 40), test=st.floats(0, 0.5), validation=st.floats(0, 0.4), seed=st.integers(0, 9))
def test_every_field_is_in_one_part_and_no_well_in_two(
    wells: int, test: float, validation: float, seed: int
) -> None:
    index = plate(wells)
    split = draw([index], SplitRecipe(test=test, validation=validation, seed=seed))
    assert len(split.parts) == 2 * wells
    parts = [wells_of(split, part) for part in splits.PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == wells
    for found, share in zip(parts[1:], (validation, test), strict=True):
        assert abs(len(found) - share * wells) <= 1


def test_the_same_seed_draws_the_same_split_wherever_and_in_whatever_order_the_plates_lie() -> None:
    one, two = plate(12), plate(20, name="P02")
    recipe = SplitRecipe(seed=3)
    assert draw([one, two], recipe).digest == draw([two, one], recipe).digest
    assert draw([one, two], recipe).digest != draw([one, two], SplitRecipe(seed=4)).digest


def test_each_plate_is_split_in_the_same_proportion() -> None:
    split = draw([plate(20), plate(40, name="P02")], SplitRecipe(test=0.2, validation=0.1))
    assert Counter(name for name, _ in wells_of(split, "test")) == {"P01": 4, "P02": 8}
    assert Counter(name for name, _ in wells_of(split, "validation")) == {"P01": 2, "P02": 4}


def test_values_of_the_plate_map_are_shared_out_evenly() -> None:
    names = [well_name(i // 12, i % 12) for i in range(40)]
    lines = {well: {"cell_line": "HeLa" if i < 10 else "3T3"} for i, well in enumerate(names)}
    split = draw([plate(40, plate_map=lines)], SplitRecipe(test=0.2, validation=0.1, stratify="cell_line"))
    for part, counts in (("test", {"HeLa": 2, "3T3": 6}), ("validation", {"HeLa": 1, "3T3": 3})):
        assert Counter(lines[well]["cell_line"] for _, well in wells_of(split, part)) == counts


def test_held_out_values_all_test_and_count_towards_its_share() -> None:
    lines = {well_name(0, i): {"treatment": "A" if i < 3 else "B"} for i in range(12)}
    split = draw([plate(12, plate_map=lines)], SplitRecipe(test=0.25, hold_out={"treatment": ["A"]}))
    assert wells_of(split, "test") == {("P01", f"A0{i}") for i in (1, 2, 3)}


def test_named_wells_test_and_validate_and_the_rest_trains() -> None:
    recipe = SplitRecipe(test_wells=["a2"], validation_wells=["A03", "A04"])
    split = draw([plate(12), plate(12, name="P02")], recipe)
    assert wells_of(split, "test") == {("P01", "A02"), ("P02", "A02")}
    assert len(wells_of(split, "validation")) == 4
    assert len(wells_of(split, "train")) == 18


def test_by_field_all_acquisitions_of_a_field_share_its_part() -> None:
    index = plate(1, fields=10)
    twice = tuple(
        Field(FieldKey("A01", f.key.name, a), f.shape, f.dtype) for f in index.plate.fields for a in (0, 1)
    )
    both = cast(Index, SimpleNamespace(plate=Plate("P01", ("A",), ("1",), (), twice), plate_map={}))
    split = draw([both], SplitRecipe(by="field", test=0.3, validation=0.2))
    assert Counter(split.parts.values()) == {"train": 5, "test": 3, "validation": 2}
    assert len(split.keys(both.plate, "test")) == 6
    assert split.part("P01", FieldKey("A01", "3", 0)) == split.part("P01", FieldKey("A01", "3", 1))


def test_one_well_trains() -> None:
    assert wells_of(draw([plate(1)], SplitRecipe()), "train") == {("P01", "A01")}


def test_a_written_split_is_read_back_with_the_same_digest(tmp_path: Path) -> None:
    split = draw([plate(12)], SplitRecipe())
    splits.write(split, tmp_path / "split.csv")
    again = draw([plate(12)], SplitRecipe(file=tmp_path / "split.csv", seed=9))
    assert again == split
    assert again.digest == split.digest
    assert (tmp_path / "split.csv").read_text().startswith(HEAD + "P01,A01,1,")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (SplitRecipe(test_wells=["B04"]), "split.test_wells: no plate has 'B04'"),
        (SplitRecipe(validation_wells=["12"]), "is no well name"),
        (SplitRecipe(test_wells=["A01"], validation_wells=["A1"]), "A01 is already held out for test"),
        (SplitRecipe(stratify="treatmant"), "no column 'treatmant'; did you mean 'treatment'"),
        (SplitRecipe(hold_out={"treatment": ["C"]}), "no well has 'C'; there are: 'A', 'B'"),
        (SplitRecipe(test=1.0), "no field is left to train on"),
    ],
)
def test_a_unit_that_no_plate_has_is_named_with_those_that_exist(recipe: SplitRecipe, said: str) -> None:
    lines = {well_name(0, i): {"treatment": "A" if i < 3 else "B"} for i in range(12)}
    with pytest.raises(UserError, match=said):
        draw([plate(12, plate_map=lines)], recipe)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "P01,A01,1,training\n", "no part is called 'training'; did you mean 'train'"),
        ("plate,well,part\nP01,A01,train\n", "no column 'field'"),
        (HEAD + "P01,A01,1,train\nP01,A01,1,test\n", "line 3: P01/A01/1 is in train and in test"),
        (HEAD + "P01,A01,1,train\nP01,A01,2,test\n", "well A01 of P01 is in train and in test"),
        (HEAD + "P02,A01,1,train\n", "has no plate 'P01'"),
        (HEAD + "P01,A01,1,test\n", "no field is left to train on"),
        ("", "has no plate 'P01'"),
    ],
)
def test_an_error_in_a_split_file_names_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        draw([plate(2)], SplitRecipe(file=tmp_path / "split.csv"))


def test_two_plates_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two plates are called 'P01'"):
        draw([plate(2), plate(3)], SplitRecipe())
