"""Text of users in Markdown is text: markdown-it, a CommonMark parser with GitHub's tables, reads
it back as it was."""

from __future__ import annotations

import random

import pytest
import yaml
from markdown_it import MarkdownIt

from psvit_ray.arch.presets import preset
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.export.config import ExportConfig, TrainingInfo
from psvit_ray.export.model_card import model_card
from psvit_ray.text.markdown import code, text
from psvit_ray.text.printable import printable
from psvit_ray.training.config import TrainConfig

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
NASTY = [
    "<script>alert(1)</script>",
    "x\n\n## Licence\n\nMIT",
    "---\nlicense: mit\n---",
    "a|b",
    "`a`",
    "``a",
    "[a](http://b)",
    "![a](b.png)",
    "<http://a>",
    "&lt; &amp; &#124;",
    "*a* _b_ ~~c~~ $x$",
    "a\\",
    "\\|",
    "# a",
    " a ",
    "\x1b[31ma\r",
    "größe \U0001f600",
    "",
]


def plain(markdown: str) -> str:
    """What a reader sees of one line of Markdown; nothing but text and code may be in it."""
    tokens = PARSER.parseInline(markdown)[0].children or []
    assert {token.type for token in tokens} <= {"text", "code_inline", "text_special"}, markdown
    return "".join(token.content for token in tokens)


def cells(row: str) -> list[str]:
    """What a reader sees in the cells of a table's row."""
    tokens = PARSER.parse(f"| 1 | 2 | 3 | 4 |\n| - | - | - | - |\n{row}")
    contents = [token.content for token in tokens if token.type == "inline"]
    return [plain(content) for content in contents[4:]]


def drawn(seed: int, size: int) -> list[str]:
    draw = random.Random(seed)
    alphabet = "".join(NASTY) + "~^:@.-+=\"'{}/1"
    return ["".join(draw.choices(alphabet, k=draw.randint(1, 12))) for _ in range(size)]


@pytest.mark.parametrize("write", [text, code])
def test_text_of_users_is_read_back_as_it_was(write: type[str]) -> None:
    for value in [*NASTY, *drawn(0, 3000)]:
        shown = printable(value).strip()
        assert plain(f"a {write(value)} b") == f"a {printable(value)} b"
        assert plain(write(value)).strip() == shown
        assert cells(f"| a | {write(value)} | b |") == ["a", shown, "b", ""]


def card_of(names: list[str]) -> str:
    spec = preset("psvit_2d_tiny").model_copy(update={"num_classes": len(names)})
    facts = TrainingInfo(
        name=names[0],
        run_id=names[1],
        which="last",
        data=names[2],
        epochs=1,
        epoch=1,
        step=1,
        seed=0,
        holdout_top1=None,
        test_top1=None,
        macs=1,
        params=1,
        settings=TrainConfig().model_dump(mode="json") | {"teacher": names[3]},
    )
    preprocessing = Preprocessing(img_size=8, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return model_card(
        ExportConfig(
            spec=spec, preprocessing=preprocessing, class_names=tuple(names), training=facts
        ),
        default_settings=TrainConfig().model_dump(mode="json"),
    )


@pytest.mark.parametrize("name", [name for name in NASTY if name])
def test_names_change_nothing_of_the_cards_structure(name: str) -> None:
    """The same headings, tables and front matter as with names that mean nothing."""

    def structure(card: str) -> list[tuple[str, str]]:
        _, front, body = card.split("---\n", 2)
        assert yaml.safe_load(front)["library_name"] == "psvit_ray"
        tokens = PARSER.parse(body)
        texts = [token for token in tokens if token.type == "inline"]
        inner = {child.type for token in texts for child in token.children or []}
        assert inner <= {"text", "code_inline", "softbreak", "text_special"}
        return [(token.type, token.tag) for token in tokens]

    assert structure(card_of([name] * 4)) == structure(card_of(["a"] * 4))
    assert text(name) in card_of([name] * 4)
