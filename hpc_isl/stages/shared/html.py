"""HTML by small functions: all that is not HTML already is escaped, and pictures are part of the page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light }
body { margin: 0 auto; max-width: 1360px; padding: 1.5rem 2rem 4rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .2rem }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .5rem; border-top: 1px solid #c9c9c9 }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
p, li { max-width: 62rem } p.about { color: #444; margin-top: 0 }
nav ol { columns: 2; padding-left: 1.4rem; margin: .6rem 0; max-width: 50rem }
a { color: #0b4f8a }
.headline { background: #eef4fa; border-left: 5px solid #0072b2; padding: .7rem 1.2rem; margin: 1rem 0 }
.headline p { margin: .45rem 0; font-size: 1.08rem }
.warning { background: #fdf1e7; border-left: 5px solid #d55e00; padding: .5rem 1.2rem; margin: 1rem 0 }
figure { margin: 1rem 0 1.4rem } figure img { max-width: 100%; height: auto; display: block }
figcaption, caption { color: #333; font-size: .92rem; max-width: 62rem }
.wide { overflow-x: auto; margin: .8rem 0 1.4rem }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .35rem }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
thead th { border-bottom: 2px solid #777 } td.number, th.number { text-align: right; white-space: nowrap }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: .88em;
  overflow-wrap: anywhere }
pre { background: #f6f6f6; padding: .7rem 1rem; white-space: pre-wrap }
@media print { body { max-width: none; padding: 0; font-size: 11pt } figure, tr { break-inside: avoid }
  h2, h3 { break-after: avoid } .wide { overflow: visible } table { font-size: 8.5pt }
  th, td { padding: .15rem .35rem } td.number, th.number { white-space: normal } }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def safe(inside: object) -> Html:
    """Returns HTML as it is, anything else escaped."""
    return inside if isinstance(inside, Html) else Html(escape(str(inside)))


def join(parts: Iterable[object]) -> Html:
    return Html("\n".join(map(safe, parts)))


def tag(element: str, *inside: object, **attributes: object) -> Html:
    """Returns an element, as in `tag("p", "a < b", class_="about")`."""
    given = "".join(f' {name.rstrip("_")}="{escape(str(value))}"' for name, value in attributes.items())
    return Html(f"<{element}{given}>{''.join(map(safe, inside))}</{element}>")


def picture(png: bytes, alt: str, caption: object, width: int | None = None) -> Html:
    """Returns a figure whose pixels are part of the page; `width` in CSS pixels."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    size = f' width="{width}"' if width else ""
    image = Html(f'<img src="{source}" alt="{escape(alt)}"{size}>')
    return tag("figure", image, tag("figcaption", caption))


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], caption: object, numbers: Iterable[int] = ()
) -> Html:
    """Returns a table; `numbers`: the columns that hold numbers, which are right-aligned."""
    right = set(numbers)

    def line(kind: str, cells: Sequence[object]) -> Html:
        marked = [
            tag(kind, cell, **({"class_": "number"} if at in right else {})) for at, cell in enumerate(cells)
        ]
        return tag("tr", *marked)

    body = join(line("td", row) for row in rows)
    whole = tag("table", tag("caption", caption), tag("thead", line("th", header)), tag("tbody", body))
    return tag("div", whole, class_="wide")


def page(title: str, body: Html) -> str:
    """Returns the whole file, without scripts and without anything to download."""
    head = join([
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Html(STYLE)),
    ])  # fmt: skip
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n{tag("body", body)}\n</html>\n'
