"""Parsing of vendors' XML: elements one by one, without the tree, and never with a DTD or an entity."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring, iterparse

from hpc_isl.errors import UserError
from hpc_isl.plates.readers.plane_metadata import MetadataError


def elements(path: Path, names: Collection[str]) -> Iterator[tuple[str, Element]]:
    """Yields each element whose local name is in `names`, complete with its children, and then drops it.

    Namespaces are ignored. Memory holds one such element at a time, so an index of 200,000 images is
    read in the memory of one; nothing of an element may be kept but its text.

    Raises:
        UserError: naming the file: unreadable, not well-formed, or holding a DTD or entities.
    """
    try:
        with path.open("rb") as file:
            yield from _elements(file, frozenset(names))
    except DefusedXmlException as error:
        raise UserError(f"{path}: {_forbidden(error)}") from None
    except (ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not well-formed XML ({error}): truncated or edited?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _elements(file: BinaryIO, names: frozenset[str]) -> Iterator[tuple[str, Element]]:
    open_elements: list[Element] = []
    for event, element in iterparse(file, events=("start", "end"), forbid_dtd=True):
        if event == "start":
            open_elements.append(element)
            continue
        open_elements.pop()
        name = local(element.tag)
        if name in names:
            yield name, element
            if open_elements:
                open_elements[-1].remove(element)


def texts(element: Element) -> dict[str, str]:
    """Returns local name -> stripped text of the element's children; the last one counts."""
    return {local(child.tag): (child.text or "").strip() for child in element}


@lru_cache(1024)
def local(tag: str) -> str:
    """Returns a tag without its namespace."""
    return tag.rpartition("}")[2]


def parsed(text: str, origin: str) -> Element:
    """Returns the root of an XML text, as TIFFs hold it.

    Raises:
        MetadataError: naming `origin`.
        UserError: it holds a DTD or entities.
    """
    try:
        root: Element = fromstring(text.strip("\ufeff\0 \t\r\n"), forbid_dtd=True)
    except DefusedXmlException as error:
        raise UserError(f"{origin} {_forbidden(error)}") from None
    except (ParseError, ValueError, LookupError) as error:
        raise MetadataError(f"{origin} is not well-formed XML ({error}): truncated or edited?") from None
    return root


def _forbidden(error: DefusedXmlException) -> str:
    what = type(error).__name__.removesuffix("Forbidden").lower()
    return f"holds a DTD or entities ({what}), which instruments never write: refused"
