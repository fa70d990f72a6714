"""Tables in CSV: what is written is read back, and no spreadsheet computes it."""

from __future__ import annotations

import csv
import io
import random

import pytest

from psvit_ray.text import csv_file

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "＝1"]
ALPHABET = "=+-@\t\r\n'\",;\x00aé1.e \udcff＝"


def as_python_reads(content: bytes) -> list[list[str]]:
    text = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
    return list(csv.reader(text))


@pytest.mark.parametrize("text", [*FORMULAS, *(f"'{formula}" for formula in FORMULAS)])
def test_a_formula_is_written_as_text(text: str) -> None:
    (_, row) = as_python_reads(csv_file.csv_bytes(["a", "b"], [["x", text]]))
    assert row == ["x", f"'{text}"]
    assert as_python_reads(csv_file.csv_bytes([text], [])) == [[f"'{text}"]]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *((text, text) for text in ("cat", "", "'cat", "a=b", "2-1|1", "1e-5", "-", "größe")),
        *((text, text) for text in ("-1", "-1.5", "+2e-05", "-.5")),
        *((-1, "-1"), (-1.5, "-1.5"), (float("-inf"), "-inf"), (None, ""), (True, "True")),
    ],
)
def test_numbers_and_plain_text_stay_as_they_are(value: object, written: str) -> None:
    assert as_python_reads(csv_file.csv_bytes(["a", "b"], [["x", value]]))[1] == ["x", written]


def test_text_is_read_back_whatever_it_is_made_of() -> None:
    draw = random.Random(0)
    for _ in range(5000):
        table = [
            ["".join(draw.choices(ALPHABET, k=draw.randint(0, 6))) for _ in range(3)]
            for _ in range(draw.randint(0, 3))
        ]
        content = csv_file.csv_bytes(["a", "b", "c"], table)
        assert csv_file.csv_rows(content) == table
        for row in as_python_reads(content):
            for cell in row:
                number = cell.lstrip("+-").replace(".", "", 1).replace("e", "").isdigit()
                assert cell[:1] not in tuple("=+-@\t\r\n") or cell == "-" or number or not cell


def test_lines_end_alike_and_bytes_of_a_name_stay() -> None:
    content = csv_file.csv_bytes(["a"], [["\udcff"], ["x\ry"]])
    assert content == b'a\n\xff\n"x\ry"\n'


def test_what_is_no_csv_is_refused() -> None:
    with pytest.raises(ValueError, match="field larger than field limit"):
        csv_file.csv_rows(b"a,b\n" + 200_000 * b"x")
