"""Names of wells and the shapes of plates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import (
    FORMATS,
    Channel,
    Field,
    FieldKey,
    Plate,
    color_of,
    is_transmitted,
    layout,
    row_name,
    well_name,
    well_position,
)


@given(st.integers(0, 31), st.integers(0, 47))
def test_every_well_of_a_1536_well_plate_has_a_name_that_reads_back(row: int, column: int) -> None:
    assert well_position(well_name(row, column)) == (row, column)


def test_names_of_a_1536_well_plate_are_all_different() -> None:
    assert len({well_name(row, column) for row in range(32) for column in range(48)}) == 1536
    assert [row_name(row) for row in (0, 25, 26, 31)] == ["A", "Z", "AA", "AF"]


@pytest.mark.parametrize("written", ["AC07", "ac7", "Ac07", "aC007"])
def test_rows_beyond_z_are_read_in_any_case(written: str) -> None:
    assert well_position(written) == (28, 6)


@pytest.mark.parametrize("written", ["B03", "b3", "B003", " b03 ", "B3"])
def test_wells_are_understood_as_people_write_them(written: str) -> None:
    assert well_position(written) == (1, 2)


@pytest.mark.parametrize(
    "written", ["", "B", "3", "B0", "B00", "3B", "B-3", "BB03", "ABC1", "B100", "B03/1", "Ä03", "B３"]
)
def test_what_is_no_well_is_refused_by_name(written: str) -> None:
    with pytest.raises(UserError, match="is no well name") as mistake:
        well_position(written)
    assert repr(written) in str(mistake.value)


@given(st.text(max_size=6))
def test_any_text_is_a_well_or_refused(text: str) -> None:
    try:
        row, column = well_position(text)
    except UserError:
        return
    assert (row, column) == well_position(well_name(row, column))


@pytest.mark.parametrize(
    ("wells", "wells_on_plate", "shape"),
    [
        ({"A01"}, None, (8, 12)),
        ({"H12"}, None, (8, 12)),
        ({"A13"}, None, (16, 24)),
        ({"AF48"}, None, (32, 48)),
        ({"B03"}, 6, (2, 3)),
        ({"B03"}, 384, (16, 24)),
        (set(), None, (8, 12)),
    ],
)
def test_the_smallest_format_that_holds_the_wells(
    wells: set[str], wells_on_plate: int | None, shape: tuple[int, int]
) -> None:
    rows, columns = layout(wells, wells_on_plate)
    assert (len(rows), len(columns)) == shape
    assert (rows[0], columns[0]) == ("A", "01")


@pytest.mark.parametrize(("wells", "wells_on_plate"), [({"C01"}, 6), ({"A49"}, None), ({"I01"}, 96)])
def test_wells_beyond_the_format_are_refused(wells: set[str], wells_on_plate: int | None) -> None:
    with pytest.raises(UserError, match=next(iter(wells))):
        layout(wells, wells_on_plate)


@given(st.sampled_from(sorted(FORMATS)))
def test_a_named_format_has_its_wells(count: int) -> None:
    rows, columns = layout({"A01"}, count)
    assert len(rows) * len(columns) == count


def field(well: str, name: str, acquisition: int = 0) -> Field:
    return Field(
        FieldKey(well, name, acquisition), (1, 2, 3, 4, 5), "uint16", details={"planes": {"a": [0, 2]}}
    )


def test_a_field_is_named_by_well_name_and_acquisition() -> None:
    assert str(FieldKey("B03", "2")) == "B03/2"
    assert str(FieldKey("B03", "2", 1)) == "B03/1x2"


def test_a_field_knows_which_planes_exist() -> None:
    assert field("A01", "1").planes("a") == (0, 2)
    assert field("A01", "1").planes("b") == ()
    assert Field(FieldKey("A01", "1"), (1, 2, 3, 4, 5), "uint16").planes("a") == (0, 1, 2)


def test_wells_are_in_plate_order() -> None:
    rows, columns = layout({"AA10"})
    fields = tuple(field(well, "1") for well in ("AA01", "B10", "B02", "A01"))
    plate = Plate("p", rows, columns, (Channel("a"), Channel("b")), fields)
    assert plate.wells == ("A01", "B02", "B10", "AA01")
    assert plate.keep({FieldKey("B10", "1")}).wells == ("B10",)


def test_colours_follow_the_emission() -> None:
    assert [color_of(True, nm) for nm in (456, 522, 570, 599, 706)] == [
        "0000FF",
        "00FF00",
        "FFFF00",
        "FF0000",
        "FF00FF",
    ]
    assert color_of(True) == color_of(False) == color_of(False, 740) == "FFFFFF"


@pytest.mark.parametrize(
    "name", ["Brightfield", "bright-field", "Bright Field", "BF", "TL 20%", "DIC_1", "Phase"]
)
def test_names_of_transmitted_light_are_known(name: str) -> None:
    assert is_transmitted(name)


@pytest.mark.parametrize("name", ["DAPI", "BFP", "TLR4", "Indication", "mCherry"])
def test_stains_are_no_transmitted_light(name: str) -> None:
    assert not is_transmitted(name)
