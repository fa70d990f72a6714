"""CSV tables as this project writes them: UTF-8, lines that end in `\\n`, and no cell that a
spreadsheet would compute."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""A cell that a spreadsheet takes for a formula (OWASP, "CSV Injection"), also behind apostrophes:
so the apostrophe that `csv_line` adds can be told from the text's own."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|-", re.IGNORECASE | re.ASCII)


def csv_line(cells: Iterable[object]) -> str:
    """One row of a table. Text that would be a formula gets an apostrophe before it; numbers stay
    as they are."""
    text = io.StringIO(newline="")
    # With "\n" for the end of a line, Python before 3.13 would not quote a cell with "\r".
    csv.writer(text, lineterminator="\r\n").writerow([_written(cell) for cell in cells])
    return text.getvalue().removesuffix("\r\n") + "\n"


def csv_bytes(heading: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """The content of a whole file. File names that are not UTF-8 keep their bytes."""
    return "".join(map(csv_line, [heading, *rows])).encode("utf-8", "surrogateescape")


def csv_rows(content: bytes) -> list[list[str]]:
    """The rows of a file without its heading, with the text that `csv_bytes` was given.

    Raises ValueError if the file is not CSV.
    """
    text = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
    try:
        table = list(csv.reader(text))
    except csv.Error as error:
        raise ValueError(f"{error}") from None
    return [[_read(cell) for cell in row] for row in table[1:]]


def _written(cell: object) -> object:
    is_formula = isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def _read(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
