"""The report says what the records say, and no more."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from matplotlib import image

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report import leaderboard
from psvit_ray.report.summary import winner_steps
from psvit_ray.search.record import Record, ranking
from psvit_ray.storage.folder import Folder
from psvit_ray.text.yaml_file import read_yaml
from psvit_ray.training.config import Configuration, TrainConfig
from tests.helpers.records import DEIT, PSVIT, record, spec_of

TRACKING = "sqlite:////tmp/mlflow.db"
TEXT = "What the terminal shows: 1 < 2."


def found() -> list[Record]:
    """What a search may end with: each way to end, a comma and a quote in a reason."""
    return [
        record(0, (80.0, 90.5), spec=DEIT, kind="baseline", run_id="run0"),
        record(1, (85.0, 97.25), kind="first"),
        record(2, (99.9,), status="stopped", reason="behind the others after 1 epochs"),
        record(3, (10.0, math.nan), status="failed", reason='loss is "NaN", epoch 2'),
        record(4, status="interrupted"),
        record(5, (60.0, 92.125), spec=spec_of((1,), (3,), dim=16), seconds=12.34),
    ]


def test_the_tables_hold_every_configuration_as_recorded(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    leaderboard.write(found(), folder, title="a", text=TEXT)
    table = json.loads((tmp_path / "leaderboard.json").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text())))
    assert [row["key"] for row in table] == [r.key for r in ranking(found())]
    assert [row["rank"] for row in table] == [1, 2, 3, None, None, None]
    for line, row, one in zip(lines, table, ranking(found()), strict=True):
        spec = one.configuration.spec
        assert row["gmacs"] == one.gmacs
        assert row["params_m"] == one.params_m
        assert row["holdout_top1"] == one.top1
        assert row["epochs"] == len(one.curve)
        assert (row["status"], row["reason"]) == (one.status, one.reason)
        assert (row["spec_id"], row["pattern"]) == (spec.spec_id, spec.pattern)
        assert (row["kind"], row["run_id"]) == (one.kind, one.run_id)
        assert row["overrides"] == "lr=0.003", "the only searched field of TrainConfig"
        assert line == {name: "" if v is None else str(v) for name, v in row.items()}


def test_best_yaml_is_the_winner_to_be_trained_again(tmp_path: Path) -> None:
    leaderboard.write(found(), Folder.at(str(tmp_path)), title="my search", text=TEXT)
    text = (tmp_path / "best.yaml").read_text()
    content = yaml.safe_load(text)
    winner = Configuration(
        spec=ArchSpec.model_validate(content["spec"]),
        train=TrainConfig.model_validate(content["train"]),
    )
    assert winner == found()[1].configuration
    assert winner.key == found()[1].key
    assert set(content["train"]) == set(TrainConfig.model_fields), "nothing is left to defaults"
    heading = "".join(line for line in text.splitlines() if line.startswith("#"))
    for said in ("my search", winner.key, "97.25 % top-1"):
        assert said in heading


def test_without_a_winner_there_is_a_leaderboard_and_no_recipe(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    leaderboard.write(found(), folder, title="a", text=TEXT)
    for records in ([], found()[2:5]):
        leaderboard.write(records, folder, title="a", text=TEXT)
        assert folder.names() == [
            *("curves.png", "importance.png", "leaderboard.csv", "leaderboard.json"),
            *("pareto.png", "report.html"),
        ]
        assert len(json.loads((tmp_path / "leaderboard.json").read_text())) == len(records)
        said = leaderboard.summary(records, folder, TRACKING)
        assert "No winner yet" in said
        assert "best.yaml" not in said


def test_the_summary_ends_with_commands_and_shows_deit_beside_the_best() -> None:
    records = [record(n, (95.0 + n / 10,)) for n in range(1, 15)] + found()
    said = leaderboard.summary(records, Folder("/data/out puts/mine"), TRACKING)
    rows = [line.split() for line in said.splitlines() if line.strip()[:1].isdigit()][1:]
    assert [row[0] for row in rows] == [*map(str, range(1, 11)), "17"]
    assert rows[0][1] == "97.25"
    assert (rows[-1][1], rows[-1][4]) == ("90.50", "DeiT")
    assert "99.90" not in said, "what was stopped early does not rank"
    steps = said.split("\n\n")[-1]
    place = f"--storage '/data/out puts' --tracking-uri {TRACKING}"
    assert [line.partition("psvit ")[2] for line in steps.splitlines() if "psvit " in line] == [
        f"train --arch '/data/out puts/mine/best.yaml' --name mine-winner {place}",
        f"compare --search mine {place}",
        "export --run '/data/out puts/mine-winner' --out '/data/out puts/mine-model'",
        "evaluate --model '/data/out puts/mine-model' --data digits --out "
        "'/data/out puts/mine-evaluation'",
    ]
    assert f"mlflow ui --backend-store-uri {TRACKING}" in steps


def test_of_a_folder_the_last_command_classifies_images_and_mlflow_beside_it_is_no_flag() -> None:
    photos = Configuration(spec=PSVIT, train=TrainConfig(data="/data/photos"))
    winner = record(1, (95.0,)).model_copy(update={"configuration": photos})
    steps = dict(winner_steps(winner, Folder("/out/a"), "sqlite:////out/mlflow.db"))
    assert steps["Against DeiT"] == "psvit compare --search a --storage /out"
    assert steps["Classify images"] == (
        "psvit predict --model /out/a-model --data /data/photos --out /out/a-predictions.csv"
    )


def test_the_comparison_with_deit_is_at_no_more_macs() -> None:
    costly = record(7, (99.0,), spec=spec_of((1,) * 6, dim=64))
    assert costly.macs > found()[0].macs >= found()[1].macs
    said = leaderboard.summary([*found(), costly], Folder("/data/mine"), TRACKING)
    ratio = found()[1].macs / found()[0].macs
    assert f"2.75 % PSViT {PSVIT.pattern}, 9.50 % DeiT, at {ratio:.2f} x its MACs" in said


def test_without_a_known_error_there_is_no_word_of_it() -> None:
    equal = [record(1, (90.0,)), record(2, (90.0,))]
    assert "Warning" not in leaderboard.summary(equal, Folder("/data/mine"), TRACKING)


def test_no_password_is_shown() -> None:
    folder = Folder("s3://me:secret@bucket/searches/mine")
    assert "secret" not in leaderboard.summary(found(), folder, "http://me:secret@host:5000")


def test_several_searches_stand_in_one_table(tmp_path: Path) -> None:
    searches = {"a": found(), "b": found()[:2], "c": []}
    leaderboard.write_side_by_side(searches, Folder.at(str(tmp_path)))
    table = json.loads((tmp_path / "leaderboard.json").read_text())
    assert [(row.pop("search"), row) for row in table] == [
        *(("a", row) for row in leaderboard.leaderboard_rows(found())),
        *(("b", row) for row in leaderboard.leaderboard_rows(found()[:2])),
    ]
    lines = leaderboard.side_by_side(searches).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["a", "1", "97.25"],
        ["a", "3", "90.50"],
        ["b", "1", "97.25"],
        ["b", "2", "90.50"],
        ["c", "-", "-"],
    ]


@pytest.mark.parametrize("records", [found(), found()[:1], [], [record(0, (0.0,))]])
def test_pictures_are_drawn_of_whatever_there_is(records: list[Record], tmp_path: Path) -> None:
    leaderboard.write(records, Folder.at(str(tmp_path)), title="a", text=TEXT)
    for name in ("pareto.png", "curves.png", "importance.png"):
        pixels = image.imread(tmp_path / name)
        assert pixels.shape[0] > 350
        assert pixels.min() < 0.5, "something is drawn"


def test_the_page_has_the_text_each_picture_once_and_every_configuration(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    leaderboard.write(found(), folder, title="a & b", text=TEXT)
    html = (tmp_path / "report.html").read_text()
    assert "<h1>a &amp; b</h1>" in html
    assert "<pre>What the terminal shows: 1 &lt; 2.</pre>" in html
    pictures = [
        base64.b64decode(text) for text in re.findall(r'src="data:image/png;base64,(.*?)"', html)
    ]
    names = ("winner.png", "pareto.png", "curves.png", "importance.png")
    assert pictures == [folder.read(name) for name in names]
    assert html.count("<tr>") == 1 + len(found())
    assert "loss is &quot;NaN&quot;, epoch 2" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html), "it needs no other file"


@pytest.mark.parametrize(
    "name",
    [
        *("a: b # c", "- x", "*a", "&a", "!!int 3", "010", "1:30", "null", "2024-02-30", "'\"\\"),
        *(
            "實験 \U0001f600",
            "\u202eabc",
            "a\nb: c",
            "\x1b[31m",
            "\x85\u2028",
            "\udcff",
            "{}",
            "%s",
        ),
    ],
)
def test_best_yaml_gives_any_name_back_exactly(name: str, tmp_path: Path) -> None:
    winner = record(0, (50.0,))
    train = winner.configuration.train.model_copy(update={"data": name})
    named = winner.configuration.model_copy(update={"train": train})
    winner = winner.model_copy(update={"configuration": named})
    content = leaderboard.best_yaml(winner, f"{name} of {name}").encode()
    loaded = yaml.safe_load(content)
    assert loaded == {
        "spec": winner.configuration.spec.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
    }
    assert loaded["train"]["data"] == name
    (tmp_path / "best.yaml").write_bytes(content)
    assert read_yaml(tmp_path / "best.yaml", "arch") == loaded
