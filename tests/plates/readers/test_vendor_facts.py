"""XML below the readers: what is taken from it, and what is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_isl.errors import UserError
from hpc_isl.plates.readers.vendor_facts import child_texts, xml_elements

PLAIN = (
    b'<?xml version="1.0"?><a xmlns="urn:x"><b n="1"><c> one </c><d/></b><e><b n="2"><c>two</c></b></e></a>'
)


def read(path: Path, content: bytes) -> list[dict[str, str]]:
    path.write_bytes(content)
    return [child_texts(element) for _, element in xml_elements(path, {"b"})]


def test_elements_come_whole_and_without_namespace(tmp_path: Path) -> None:
    assert read(tmp_path / "x.xml", PLAIN) == [{"c": "one", "d": ""}, {"c": "two"}]


def test_elements_are_dropped_once_they_were_read(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(b"<a>" + b"<b><c>1</c></b>" * 1000 + b"</a>")
    seen = [element for _, element in xml_elements(path, {"a", "b"})]
    assert len(seen) == 1001
    assert len(seen[-1]) == 0, "the root no longer holds what was read"


BILLION = b"<!DOCTYPE a [<!ENTITY x 'ha'><!ENTITY y '&x;&x;&x;'>]><a><b><c>&y;</c></b></a>"


@pytest.mark.parametrize(
    "content",
    [
        BILLION,
        b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>",
        b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a><b>&x;</b></a>",
        b"<!DOCTYPE a [<!ELEMENT a ANY>]><a/>",
    ],
)
def test_a_dtd_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"x\.xml: holds a DTD or entities"):
        read(tmp_path / "x.xml", content)


NOT_XML = [b"", b"no xml", PLAIN[:-1], b"<a></b>", b"\x00\x01", b"<a>&x;</a>"]


@pytest.mark.parametrize("content", [*NOT_XML, b'<?xml version="1.0" encoding="nope"?><a/>'])
def test_what_is_not_xml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"x\.xml is not well-formed XML"):
        read(tmp_path / "x.xml", content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.xml cannot be read"):
        list(xml_elements(tmp_path / "x.xml", {"b"}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, len(PLAIN) - 1), noise=st.binary(max_size=8))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, cut: int, noise: bytes) -> None:
    with contextlib.suppress(UserError):
        read(tmp_path / "x.xml", PLAIN[:cut] + noise + PLAIN[cut + len(noise) :])
