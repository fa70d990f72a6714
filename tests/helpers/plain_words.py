"""Docstrings without a subject and names that name nothing: `python -m tests.helpers.plain_words`.

A field's docstring is its `--help` text and stands there alone, so it begins with a noun.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

CHECKED = ("psvit_ray", "jobs")

NO_SUBJECT = re.compile(
    r"(Of|That|Its|Their|Theirs|Those|Whose|(In|By|With|From|For|To|On|At) (which|whom))\b"
)
NO_NOUN = re.compile(r"(In|By|With|From|For|To|On|At|As|Among|Between|Beside)\b")
VAGUE = re.compile(r"_*(one|found|said|most|told|it|theirs|ours|most_\w+)_*", re.IGNORECASE)


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each fault of a module's `source`, in the order of its syntax tree."""
    for node in ast.walk(ast.parse(source)):
        for line, name in _names(node):
            if VAGUE.fullmatch(name):
                yield line, f"{name!r} does not name the thing"
        for docstring, is_field in _docstrings(node):
            text = str(docstring.value).strip()
            if match := NO_SUBJECT.match(text) or (is_field and NO_NOUN.match(text)):
                yield docstring.lineno, f"a docstring without a subject: {match[0]} ..."


def _docstrings(node: ast.AST) -> Iterator[tuple[ast.Constant, bool]]:
    """The docstring of a module, class or function, and with True those below its assignments."""
    body = getattr(node, "body", None)
    if not isinstance(body, list):  # a lambda's is an expression
        return
    for before, statement in zip([None, *body], body, strict=False):
        match statement:
            case ast.Expr(value=ast.Constant(value=str()) as docstring):
                if before is None or isinstance(before, ast.Assign | ast.AnnAssign):
                    yield docstring, before is not None


def _names(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that a node gives to something: what it reads was named elsewhere."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            yield node.lineno, name
        case ast.arg(arg=name) | ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            yield node.lineno, name
        case ast.ExceptHandler(name=str(name)) | ast.alias(asname=str(name)):
            yield node.lineno, name


def main() -> int:
    lines = [
        f"{path}:{line}: {fault}"
        for room in CHECKED
        for path in sorted(Path(room).rglob("*.py"))
        for line, fault in sorted(faults(path.read_text(encoding="utf-8")))
    ]
    print("\n".join(lines) or "all words are plain")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
