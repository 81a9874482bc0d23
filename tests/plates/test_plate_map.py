"""Plate maps as people keep them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_isl.errors import UserError
from hpc_isl.plates.plate_map import described, merged, read_plate_map


def read(
    tmp_path: Path, text: str, known: dict[str, dict[str, str]] | None = None
) -> dict[str, dict[str, str]]:
    path = tmp_path / "map.csv"
    path.write_bytes(text.encode())
    return read_plate_map(path, 8, 12, known or {})


@pytest.mark.parametrize(
    "text",
    [
        "well,dose,cell line\nB02,1,HeLa\nC11,2,3T3\n",
        "\ufeffwell,dose,cell line\r\nB02,1,HeLa\r\nC11,2,3T3\r\n",
        "Well;dose;cell line\nb2;1;HeLa\nc011;2;3T3",
        "well\tdose\tcell line\n B2 \t 1\tHeLa\n\nC11\t2\t3T3\n",
        'dose,cell line,well\n1,"HeLa",B02\n2,"3T3",C11\n,,\n',
    ],
    ids=["plain", "from Excel", "semicolons", "tabs and gaps", "any order"],
)
def test_wells_are_brought_to_one_form_whatever_the_separator(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == {
        "B02": {"dose": "1", "cell line": "HeLa"},
        "C11": {"dose": "2", "cell line": "3T3"},
    }


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_cell_keeps_marks_that_end_no_line(tmp_path: Path, mark: str) -> None:
    assert read(tmp_path, f"well,note\nB02,a{mark}b\n") == {"B02": {"note": f"a{mark}b"}}


def test_a_cell_may_have_several_lines_and_messages_count_all_of_them(tmp_path: Path) -> None:
    text = '"dose\n(µM)";well\n"1,5";B02\n"two\nlines";C11\n'
    assert read(tmp_path, text) == {"B02": {"dose\n(µM)": "1,5"}, "C11": {"dose\n(µM)": "two\nlines"}}
    with pytest.raises(UserError, match=r"map\.csv, line 6: well I01 lies outside"):
        read(tmp_path, text + "3;I01\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "well,dose\nB02,1\nI01,2\n",
            r"map\.csv, line 3: well I01 lies outside the plate, whose last well is H12",
        ),
        ("well,dose\nB02,1\n2B,2\n", r"map\.csv, line 3: well '2B' is no well name"),
        ("well,dose\nB02,1\nb2,2\n", r"map\.csv, line 3: well B02 is given twice"),
        ("well,dose\nB02,1,x\n", "line 2: 3 values for 2 columns"),
        ("wells,dose\nB02,1\n", r"no column 'well'; did you mean 'wells'"),
        ("well,dose,dose\nB02,1,2\n", "several columns 'dose'"),
        ("", "is empty"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_a_table_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plate_map: .*none\.csv: there is no such file"):
        read_plate_map(tmp_path / "none.csv", 8, 12, {})
    (tmp_path / "map.xlsx").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(UserError, match=r"map\.xlsx is no readable CSV"):
        read_plate_map(tmp_path / "map.xlsx", 8, 12, {})


def test_images_that_stand_for_wells_can_be_named_instead(tmp_path: Path) -> None:
    known = {"A01": {"image": "HeLa_5"}, "A02": {"image": "3T3_3"}}
    result = read(tmp_path, "image,cell_line\n3T3_3,NIH-3T3\n", known)
    assert merged(known, result) == {
        "A01": {"image": "HeLa_5"},
        "A02": {"image": "3T3_3", "cell_line": "NIH-3T3"},
    }
    with pytest.raises(UserError, match="no image '3T3_4'; did you mean '3T3_3'"):
        read(tmp_path, "image,cell_line\n3T3_4,NIH-3T3\n", known)


def test_a_persons_map_overrides_the_exports() -> None:
    assert merged({"A01": {"a": "1", "b": "2"}}, {"A01": {"a": "9"}, "A02": {}}) == {
        "A01": {"a": "9", "b": "2"},
        "A02": {},
    }


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"treatment": "compound A", "dose_uM": "10", "control": ""}, ["compound A", "dose 10 µM"]),
        ({"treatment": "DMSO", "dose": "0"}, ["DMSO", "dose 0"]),
        ({"dose (nM)": "2.5", "time [h]": "24"}, ["dose 2.5 nM", "time 24 h"]),
        ({"concentration_ug_ml": "1e-3"}, ["concentration 1e-3 µg/ml"]),
        ({"control": "", "cell_line": "HeLa", "passage": "7", "plate_row": "3"}, ["HeLa", "passage 7"]),
        ({}, []),
    ],
)
def test_a_number_in_a_title_has_its_name_and_unit(facts: dict[str, str], shown: list[str]) -> None:
    """A reader of a picture sees `dose 10 µM`, not `10`."""
    assert described(facts) == shown
