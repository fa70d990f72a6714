"""The results of a search as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from psvit_ray.search.rows import Row
from psvit_ray.text.printable import printable

HTML = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px; }
figure { margin: 2rem 0; }
img { max-width: 100%; }
figcaption { color: #555; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: left; white-space: nowrap; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; }
"""


def page(
    title: str, text: str, pictures: Mapping[str, bytes], tables: Mapping[str, Sequence[Row]]
) -> bytes:
    """A page with the lines of the terminal, pictures and tables.

    Args:
        title: Heading of the page.
        text: What a terminal shows, with its line breaks.
        pictures: PNG of each picture by its caption.
        tables: Rows of each table by its heading.
    """
    heading = _text(title)
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{heading}</title>',
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{heading}</h1>",
        f"<pre>{escape(text)}</pre>",
        *(_figure(caption, png) for caption, png in pictures.items()),
        *(f"<h2>{_text(name)}</h2>\n{_table(rows)}" for name, rows in tables.items() if rows),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts).encode(errors="backslashreplace")


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _figure(caption: str, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f'<figure><img alt="{_text(caption)}" src="{source}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _table(rows: Sequence[Row]) -> str:
    heading = "".join(f"<th>{_text(name)}</th>" for name in rows[0])
    lines = ("".join(f"<td>{_cell(value)}</td>" for value in row.values()) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div><table>\n<tr>{heading}</tr>\n{body}\n</table></div>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else _text(value)
