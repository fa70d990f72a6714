"""Scores and answers of an exported model: exact counts, whatever the data and its faults."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
from PIL import Image

from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.data.sources.image_folder import FileTable
from psvit_ray.data.splits import split_file
from psvit_ray.export.inference import ScoredBatch, top_classes
from psvit_ray.export.trained_split import DRAWN_ANEW
from psvit_ray.report.evaluation.evaluation_picture import confusion_png, reliability_png
from psvit_ray.report.evaluation.metrics import (
    LabelledPredictions,
    calibration_error,
    confused_pairs,
    hardest,
    metrics,
    per_class,
    reliability,
)
from psvit_ray.report.progress import with_progress
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import new_file, new_folder
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training as train
from psvit_ray.training.exporting import export_checkpoint, training_info
from psvit_ray.training.source import load_source
from tests.helpers.command_line import Refused, Run
from tests.helpers.drawn import drawn, drawn_folder
from tests.helpers.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, object_store
from tests.helpers.stored import as_rows, load, write_parquet

CLASSES = 6

# Numbers, against scikit-learn


class Said(NamedTuple):
    answers: LabelledPredictions
    logits: np.ndarray
    """Of the images that can be read."""
    readable: np.ndarray


def random_answers(bad: Iterable[int] = (), num_images: int = 400) -> Said:
    """Seven classes; the last has no image and the one before is never predicted."""
    rng = np.random.default_rng(0)
    labels = rng.choice(6, num_images, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    logits = rng.normal(size=(num_images, 7)).astype(np.float32)
    logits[np.arange(num_images), labels] += 1.5
    logits[:, 5] -= 20
    readable = np.setdiff1d(np.arange(num_images), list(bad))
    faults = tuple((index, "truncated") for index in bad)
    batches = [
        ScoredBatch(torch.as_tensor(part), torch.as_tensor(logits[part]), faults if not i else ())
        for i, part in enumerate(np.array_split(readable, 7))
    ]
    answers = LabelledPredictions.of(batches, labels, tuple("abcdefg"))
    return Said(answers, logits[readable], readable)


def probabilities(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float64))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_the_metrics_are_scikit_learns() -> None:
    answers, logits, _ = random_answers()
    found, labels = metrics(answers), answers.labels
    predictions = logits.argmax(axis=1)
    assert found["correct"] == sklearn.metrics.accuracy_score(labels, predictions, normalize=False)
    accuracy = sklearn.metrics.accuracy_score(labels, predictions)
    assert found["top1"] == pytest.approx(100 * accuracy)
    top5 = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(7))
    assert found["top5"] == pytest.approx(100 * top5)
    assert found["loss"] == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities(logits), labels=range(7)), rel=1e-9
    )
    precision, recall, _, support = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(7), zero_division=np.nan
    )
    rows = per_class(answers)
    assert [row["support"] for row in rows] == support.tolist()
    for name, theirs in (("precision", precision), ("recall", recall)):
        ours = [np.nan if row[name] is None else row[name] / 100 for row in rows]
        np.testing.assert_allclose(ours, theirs)
    theirs = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(7))
    assert np.array_equal(answers.confusion()[:, :-1], theirs)
    assert not answers.confusion()[:, -1].any()


def test_an_unreadable_image_counts_as_wrong_and_in_no_mean() -> None:
    bad = (3, 77, 200)
    answers, logits, readable = random_answers(bad)
    found, labels = metrics(answers), answers.labels
    right = logits.argmax(axis=1) == labels[readable]
    assert (found["images"], found["unreadable"], found["correct"]) == (400, 3, right.sum())
    assert found["top1"] == 100 * right.sum() / 400
    assert found["loss"] == pytest.approx(
        sklearn.metrics.log_loss(labels[readable], probabilities(logits), labels=range(7))
    )
    confusion = answers.confusion()
    assert np.array_equal(confusion.sum(axis=1), np.bincount(labels, minlength=7))
    assert confusion[:, -1].sum() == 3
    for row in per_class(answers)[:6]:
        number = "abcdefg".index(row["class"])
        of_class = right[labels[readable] == number].sum()
        assert row["recall"] == 100 * of_class / (labels == number).sum()


def test_nothing_is_said_where_no_image_can_be_read() -> None:
    nothing = ScoredBatch(torch.empty(0).long(), torch.empty(0, 3), ((0, "empty"), (1, "empty")))
    answers = LabelledPredictions.of([nothing], np.array([0, 2]), tuple("abc"))
    found = metrics(answers)
    assert (found["top1"], found["top5"], found["loss"], found["ece"]) == (0, None, None, None)
    assert json.dumps(found, allow_nan=False)
    confusion_png(answers, "")
    reliability_png(answers, "")


def test_the_calibration_error_is_guos() -> None:
    answers, logits, _ = random_answers()
    confidences, right = probabilities(logits).max(axis=1), logits.argmax(axis=1) == answers.labels
    expected = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            gap = abs(right[inside].mean() - confidences[inside].mean())
            expected += inside.sum() / len(right) * gap
    assert metrics(answers)["ece"] == pytest.approx(expected)
    assert sum(one.count for one in reliability(answers)) == 400


def test_a_network_that_is_sure_and_half_right_is_off_by_a_half() -> None:
    sure = torch.tensor([[50.0, 0.0]] * 4)
    answers = LabelledPredictions.of(
        [ScoredBatch(torch.arange(4), sure, ())], np.array([0, 1, 0, 1]), ("a", "b")
    )
    assert calibration_error(reliability(answers)) == pytest.approx(0.5)


def test_a_probability_on_the_edge_of_a_bin_belongs_below_it() -> None:
    logits = torch.zeros(1, 5)  # of 0.2, which is 3 of 15
    answers = LabelledPredictions.of(
        [ScoredBatch(torch.arange(1), logits, ())], np.array([0]), tuple("abcde")
    )
    assert [one.high for one in reliability(answers) if one.count] == [pytest.approx(0.2)]


def test_equal_logits_go_to_the_first_class_everywhere() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_classes(logits, 3).classes.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert top_classes(torch.zeros(1, 1000), 3).classes.tolist() == [[0, 1, 2]]  # sorts that jumble
    assert torch.equal(top_classes(logits, 1).classes[:, 0], logits.argmax(dim=1))
    answers = LabelledPredictions.of(
        [ScoredBatch(torch.arange(2), logits, ())], np.array([2, 1]), tuple("abcd")
    )
    assert answers.ranks.tolist() == [1, 1]


def test_the_hardest_come_first_and_pairs_by_how_often() -> None:
    answers, logits, readable = random_answers(bad=(5,))
    losses = -np.log(probabilities(logits)[np.arange(399), answers.labels[readable]])
    assert hardest(answers, 10).tolist() == readable[np.argsort(-losses)[:10]].tolist()
    assert len(hardest(answers, 1000)) == 399
    pairs = confused_pairs(answers, 5)
    counts = [count for *_, count in pairs]
    assert counts == sorted(counts, reverse=True)
    mistakes = answers.confusion()[:, :-1]
    np.fill_diagonal(mistakes, 0)
    assert counts[0] == mistakes.max()


@pytest.mark.parametrize("num_classes", [2, 10, 60, 1000])
def test_every_class_has_pixels_of_its_own_in_the_picture(num_classes: int) -> None:
    """Each label is mistaken for one other: all of their cells are seen."""
    labels = np.arange(num_classes)
    logits = torch.zeros(num_classes, num_classes)
    logits[torch.arange(num_classes), (torch.arange(num_classes) * 7 + 1) % num_classes] = 9
    names = tuple(f"class ${n}$ 猫" for n in range(num_classes))
    answers = LabelledPredictions.of(
        [ScoredBatch(torch.arange(num_classes), logits, ())], labels, names
    )
    picture = np.asarray(Image.open(io.BytesIO(confusion_png(answers, "title"))).convert("L"))
    rows = np.unique(np.nonzero(picture < 100)[0])  # dark blue: a whole row's images
    assert len(rows) >= num_classes


def test_progress_counts_images_and_changes_nothing() -> None:
    said: list[str] = []
    given = with_progress(iter(["ab", "cde", "f"]), 6, size=len, every_s=0, say=said.append)
    assert list(given) == ["ab", "cde", "f"]
    assert [line.partition(" images, ")[0] for line in said] == ["2 of 6", "5 of 6"]
    assert list(with_progress(range(9), 9, say=said.append)) == list(range(9))
    assert len(said) == 2  # sooner than a line is due


# The jobs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of classes without splits."""
    folder = tmp_path_factory.mktemp("data") / "drawn"
    return drawn_folder(folder, classes=CLASSES, per_class=10, size=40)


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ArchSpec(
        img_size=32,
        patch_size=8,
        num_classes=CLASSES,
        pooling="2d",
        stages=(StageSpec(embed_dim=32, num_heads=2, hidden_dim=64, share_groups=(1,)),),
    )
    config = TrainConfig(data=str(data), epochs=1, warmup_epochs=0, batch_size=8, lr=0.01)
    configuration = Configuration(spec=spec, train=config)
    (report,) = train(configuration, load_source(configuration))
    checkpoint = report.checkpoint()
    folder = tmp_path_factory.mktemp("model")
    facts = training_info(checkpoint, which="best")
    export_checkpoint(folder, checkpoint, facts, splits=load_source(configuration).images)
    return folder


def evaluated(run: Run, model: Path, data: Path | str, out: str, more: str = "") -> Any:
    said = run(f"evaluate --model {model} --data '{data}' --out {out} {more}")
    assert (said.code, said.err) == (0, "")
    return json.loads(Path(out, "metrics.json").read_text())


NUMBERS = ("images", "unreadable", "correct", "top1", "top5", "loss", "ece")


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in NUMBERS}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_bad_images_are_wrong_and_named(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    good = evaluated(run, model, data, "good", "--split all")
    broken = drawn_folder(tmp_path / "broken", classes=CLASSES, per_class=10, size=40)
    names = sorted(path.name for path in broken.iterdir())
    (broken / names[0] / "zz-empty.png").write_bytes(b"")
    (broken / names[0] / "zz-page.jpg").write_text("<html>")
    whole = (broken / names[3] / "00000.png").read_bytes()
    (broken / names[3] / "zz-cut.png").write_bytes(whole[: len(whole) // 2])
    found = evaluated(run, model, broken, "out", "--num-hardest 7")
    assert found["split"] == "all"
    assert (found["images"], found["unreadable"]) == (63, 3)
    assert (found["correct"], found["loss"], found["ece"]) == pytest.approx(
        (good["correct"], good["loss"], good["ece"])
    )
    assert found["top1"] == 100 * good["correct"] / 63
    bad = [(row["path"], row["reason"]) for row in rows(tmp_path / "out" / "quarantine.csv")]
    assert bad == [
        (f"{names[0]}/zz-empty.png", "empty"),
        (f"{names[0]}/zz-page.jpg", "not an image"),
        (f"{names[3]}/zz-cut.png", "truncated"),
    ]
    per_class = rows(tmp_path / "out" / "per_class.csv")
    assert [int(row["support"]) for row in per_class] == [12, 10, 10, 11, 10, 10]
    confusion = rows(tmp_path / "out" / "confusion.csv")
    assert [row["(unreadable)"] for row in confusion] == ["2", "0", "0", "1", "0", "0"]
    assert sum(int(row[row["label"]]) for row in confusion) == found["correct"]
    losses = [float(row["loss"]) for row in rows(tmp_path / "out" / "hardest.csv")]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 7
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "hardest.csv",
        "metrics.json",
        "mistakes.png",
        "per_class.csv",
        "quarantine.csv",
        "reliability.png",
    ]
    assert not (tmp_path / "good" / "quarantine.csv").exists()


def test_classes_are_told_by_name_in_whatever_order(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    expected = evaluated(run, model, data, "folder", "--split all")
    images, labels = as_rows(data)
    names = sorted(path.name for path in data.iterdir())
    order = np.random.default_rng(1).permutation(CLASSES)
    features = {"label": {"names": [names[number] for number in order], "_type": "ClassLabel"}}
    table = pa.table(
        {"image": images, "label": pa.array([int(np.argmax(order == one)) for one in labels])}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=7)
    found = evaluated(run, model, "all.parquet", "parquet")
    assert numbers(found) == pytest.approx(numbers(expected))
    theirs, ours = rows(Path("folder/per_class.csv")), rows(Path("parquet/per_class.csv"))
    assert ours == theirs


def test_labelled_images_that_lack_classes_are_scored_and_that_is_said(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    whole = evaluated(run, model, data, "whole", "--split all")
    names = sorted(path.name for path in data.iterdir())
    lacking = [names[1], names[4]]
    for name in set(names) - set(lacking):
        shutil.copytree(data / name, tmp_path / "some" / name)
    (tmp_path / "some" / lacking[0]).mkdir()
    (tmp_path / "some" / "annotations").mkdir()  # a class of nothing, which no model knows
    said = run(f"evaluate --model {model} --data some --out some-out")
    assert said.code == 0
    assert f"no image of class {lacking[0]!r}, {lacking[1]!r}: scored on 4 of 6 cl" in said.out
    found = json.loads(Path("some-out/metrics.json").read_text())
    assert (found["images"], found["absent_classes"]) == (40, lacking)
    theirs, ours = rows(Path("whole/per_class.csv")), rows(Path("some-out/per_class.csv"))
    there = [row["class"] not in lacking for row in theirs]
    assert [row["recall"] for row in ours] == [
        row["recall"] if is_there else "" for row, is_there in zip(theirs, there, strict=True)
    ]
    assert found["correct"] == sum(
        int(row["correct"]) for row, is_there in zip(theirs, there, strict=True) if is_there
    )
    assert "absent_classes" not in whole
    shutil.copytree(data / names[2], tmp_path / "one" / names[2])
    one = evaluated(run, model, "one", "one-out")
    assert (one["images"], one["top1"]) == (10, float(theirs[2]["recall"]))


def test_test_images_are_scored_beside_training_images_that_cannot_be_cut(
    run: Run, model: Path, tmp_path: Path
) -> None:
    drawn_folder(tmp_path / "few", classes=CLASSES, size=40, splits={"train": 1, "test": 2})
    found = evaluated(run, model, "few", "out")
    assert (found["split"], found["images"]) == ("test", 12)


def test_which_folders_are_splits_is_known_from_the_training_or_said(
    run: Run, model: Path, tmp_path: Path
) -> None:
    for name, number in {"trainset": 3, "testset": 2}.items():
        drawn_folder(tmp_path / "sets" / name, classes=CLASSES, per_class=number, size=40)
    said = run(f"evaluate --model {model} --data sets --out out")
    assert (said.code, "say --splits train=trainset,test=testset" in said.err) == (2, True)
    splits = "train=trainset,test=testset"
    found = evaluated(run, model, "sets", "said", f"--splits {splits}")
    assert (found["split"], found["images"]) == ("test", 12)
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["training"]["data"] = str(tmp_path / "sets")
    config["training"]["settings"]["splits"] = splits
    del config["sha256"][split_file.SPLITS_FILE]  # it is of other data
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert numbers(evaluated(run, tmp_path / "model", "sets", "known")) == numbers(found)


def test_a_threshold_is_a_probability_for_two_classes(
    refused: Refused, model: Path, data: Path
) -> None:
    line = f"evaluate --model {model} --data {data} --out o --threshold"
    assert (
        refused(f"{line} 0.3") == f"threshold is for a model of two classes, got one of {CLASSES}"
    )
    assert refused(f"{line} 1") == "threshold must be less than 1, got 1.0"


def test_images_without_labels_are_for_predict(run: Run, model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "photos" / "1.png"
    picture.parent.mkdir()
    drawn("plain-disc", 0, size=40).save(picture)
    pq.write_table(
        pa.table({"image": [{"bytes": picture.read_bytes(), "path": ""}]}), tmp_path / "x.parquet"
    )
    for name in ("photos", "x.parquet"):
        said = run(f"evaluate --model {model} --data {name} --out out")
        assert (said.code, said.out) == (2, "")
        assert "; psvit predict takes images without" in said.err
    os.rename(picture, os.fsencode(picture.parent) + b"/caf\xe9.png")
    assert run(f"predict --model {model} --data photos --out a.csv").code == 0
    assert (tmp_path / "a.csv").read_bytes().splitlines()[1].startswith(b"photos/caf\xe9.png,")


def test_without_split_the_most_honest_images_are_taken(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    splits = {"train": 4, "val": 3, "test": 2}
    for number in (1, 2, 3):
        some = dict(list(splits.items())[:number])
        drawn_folder(tmp_path / f"{number}", classes=CLASSES, size=40, splits=some)
    taken = [
        (name, found["split"], found["images"])
        for name in ("1", "2", "3", str(data))
        for found in [evaluated(run, model, name, f"out{len(name)}{name[-1]}")]
    ]
    assert taken == [
        ("1", "all", 24),
        ("2", "holdout", 18),
        ("3", "test", 12),
        (str(data), "holdout", len(load(data, holdout=0.2, split_seed=0).holdout)),
    ]


def test_the_images_of_the_training_are_scored_though_others_came(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    """The data stands where it did when the model was trained; it is changed, and put back."""
    then = evaluated(run, model, data, "then")
    held = [row["path"] for row in rows(tmp_path / "then" / "hardest.csv")]
    assert then["notes"] == [f"holdout: the {len(held)} images that training held out"]
    kept = tmp_path / "kept"
    shutil.copytree(data, kept)
    try:
        for path in sorted(data.glob("*/*.png")):
            path.with_name(f"new-{path.name}").write_bytes(path.read_bytes() + b"0")
        more = evaluated(run, model, data, "more")
        added = "since the data was split, and left out: 60 images added, such as "
        first = sorted(path.name for path in kept.iterdir())[0]
        assert more["notes"] == [then["notes"][0], f"{added}'{first}/new-00000.png'"]
        assert numbers(more) == numbers(then)

        (data / held[0]).unlink()
        (data / held[1]).write_bytes(b"another picture")
        (data / held[2]).rename(data / Path(held[2]).parent / "renamed.png")
        fewer = evaluated(run, model, data, "fewer")
        number = len(held) - 3
        said = f"holdout: {number} of the {len(held)} images that training held out"
        assert fewer["notes"][0] == said
        assert fewer["images"] == number
        for words in ("1 image removed", "1 image renamed", "1 image changed"):
            assert words in fewer["notes"][1]
        trained = evaluated(run, model, data, "trained", "--split train")
        assert trained["notes"][0] == (
            f"train: the {60 - len(held)} images that the model was trained on"
        )
        for name in held[3:]:
            (data / name).unlink()
        none = run(f"evaluate --model {model} --data {data} --out none")
        assert none.code == 2
        assert f"got holdout: 0 of the {len(held)} images that training held out" in none.err
    finally:
        shutil.rmtree(data)
        shutil.copytree(kept, data)


def test_a_model_of_before_splits_were_kept_says_that_the_hold_out_is_drawn_anew(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(model, older)
    (older / split_file.SPLITS_FILE).unlink()
    said = run(f"evaluate --model {older} --data {data} --out o")
    assert said.code == 2
    assert "model folder was changed: splits.parquet is missing in" in said.err
    config = json.loads((older / "config.json").read_text())
    del config["sha256"][split_file.SPLITS_FILE], config["training"]["data_digest"]
    (older / "config.json").write_text(json.dumps(config))
    assert evaluated(run, older, data, "o")["notes"] == [DRAWN_ANEW]
    assert "notes" not in evaluated(run, older, data, "all", "--split all")


def test_answers_keep_the_order_of_what_was_asked(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, folders at any depth, Parquet without labels, and a list on standard input."""
    drawn(CLASS_A, 900).save(tmp_path / "z.png")
    drawn(CLASS_A, 901).save(tmp_path / "a.jpg")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    drawn(CLASS_A, 902).convert("CMYK").save(tmp_path / "deep" / "er" / "b.jpg")
    drawn(CLASS_A, 903).convert("L").save(tmp_path / "deep" / "a.png")
    (tmp_path / "deep" / "notes.txt").write_text("no image by its name")
    (tmp_path / "deep" / "c.png").write_bytes(b"")
    images, _ = as_rows(data)
    write_parquet(tmp_path / "shards" / "some.parquet", images[:9], [0] * 9)
    table = pq.read_table(tmp_path / "shards" / "some.parquet").drop_columns("label")
    pq.write_table(table, tmp_path / "shards" / "some.parquet", row_group_size=4)
    monkeypatch.setattr("sys.stdin", io.StringIO("a.jpg\n\ndeep/a.png\nmissing.png\n"))
    said = run(f"predict --model {model} --data z.png deep shards - a.jpg --out o.csv --top-k 99")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        f"17 images, of which 2 cannot be read, as their rows say: {tmp_path}/o.csv\n"
    )
    found = rows(tmp_path / "o.csv")
    names = ["z.png", "deep/a.png", "deep/c.png", "deep/er/b.jpg"]
    names += [f"shards/some.parquet:{row}" for row in range(9)]
    names += ["a.jpg", "deep/a.png", "missing.png", "a.jpg"]
    assert [row["path"] for row in found] == names
    errors = {row["path"]: (row["label"], row["error"]) for row in found if row["error"]}
    assert errors == {
        "deep/c.png": ("", "empty"),
        "missing.png": ("", "no such file or directory"),
    }
    assert len(found[0]) == 2 + 2 * CLASSES
    assert found[13] == found[16]


CLASS_A = "dotted-disc"


def test_a_name_on_standard_input_need_not_be_utf8(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = b"caf\xe9 \xff.png"
    drawn(CLASS_A, 900).save(tmp_path / os.fsdecode(name))
    listed = io.BytesIO(name + b"\r\n" + "caf\u00e9.png".encode() + b"\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(listed, encoding="utf-8"))
    said = run(f"predict --model {model} --data - --out o.csv")
    assert (said.code, said.err) == (0, "")
    first, second = (tmp_path / "o.csv").read_bytes().splitlines()[1:]
    assert first.startswith(name + b",")
    assert second.startswith("caf\u00e9.png,".encode())
    missing = b"no such file or directory"
    assert (missing in first, missing in second) == (False, True)


def test_csv_and_json_lines_say_the_same(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    for suffix in ("csv", "jsonl"):
        line = f"predict --model {model} --data {data} empty.png --out o.{suffix} --top-k 3"
        assert run(line).code == 0
    for row, line in zip(
        rows(tmp_path / "o.csv"), (tmp_path / "o.jsonl").read_text().splitlines(), strict=True
    ):
        found = json.loads(line)
        assert (found["path"], found["error"] or "") == (row["path"], row["error"])
        assert (found["label"] or "") == row["label"]
        if found["error"] is None:
            assert [one["label"] for one in found["top"]] == [
                row["label"],
                row["label_2"],
                row["label_3"],
            ]
            assert found["top"][0]["probability"] == float(row["probability"])


@pytest.mark.processes
def test_an_object_store_is_read_and_written_without_telling_its_secrets(
    run: Run, model: Path, data: Path
) -> None:
    credentials = f"{ACCESS_KEY}:{SECRET_KEY}@"
    with object_store() as store:
        store.upload(model, "model")
        store.upload(data, "photos")
        places = [store.uri("photos", credentials), store.uri("photos/*/00003.png", credentials)]
        line = f"--model '{store.uri('model', credentials)}' --data '{places[0]}'"
        asked = run(f"predict {line} '{places[1]}' --out '{store.uri('o.csv', credentials)}'")
        scored = run(f"evaluate {line} --out '{store.uri('e', credentials)}' --split all")
        assert (asked.code, scored.code) == (0, 0), asked.err + scored.err
        written = {
            one["Key"]: store.client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read()
            for one in store.client.list_objects_v2(Bucket=BUCKET)["Contents"]
            if not one["Key"].startswith(("model/", "photos/"))
        }
    assert {"o.csv", "e/metrics.json", "e/confusion.png"} <= written.keys()
    found = list(csv.DictReader(io.StringIO(written["o.csv"].decode())))
    names = sorted(str(path.relative_to(data)) for path in data.glob("*/*.png"))
    names += [name for name in names if name.endswith("00003.png")]
    assert [row["path"] for row in found] == [f"s3://{BUCKET}/photos/{name}" for name in names]
    assert not any(row["error"] for row in found)
    shown = b"".join(written.values()) + (asked.out + asked.err + scored.out + scored.err).encode()
    assert SECRET_KEY.encode() not in shown


def test_what_is_not_finished_is_not_there(tmp_path: Path) -> None:
    def fails(kind: Any) -> None:
        with kind(Folder.at(str(tmp_path / "deep" / "out"))) as work:
            if isinstance(work, Path):
                (work / "part").write_text("a")
            else:
                work.write("a")
            raise RuntimeError("in the middle")

    for kind in (new_file, new_folder):
        with pytest.raises(RuntimeError, match="in the middle"):
            fails(kind)
        assert list((tmp_path / "deep").iterdir()) == []


# Wrong input


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "evaluate --model nowhere --data {data} --out o",
            "model must be an exported folder, got {here}/nowhere, without config.json",
        ),
        (
            "evaluate --model {model} --data {data} --out full",
            "out must be new or empty, got {here}/full, which holds 'a.txt'",
        ),
        (
            "evaluate --model {model} --data {data} --out full/a.txt",
            "out must be a folder, got {here}/full/a.txt: {here}/full/a.txt is a file",
        ),
        (
            "evaluate --model {model} --data {data} --split test --out o",
            "split must be train, holdout or all with data '{data}', got 'test'",
        ),
        (
            "evaluate --model {model} --data splits --split all --out o",
            "split must be train or holdout with data 'splits', got 'all'",
        ),
        (
            "evaluate --model {model} --data others --out o",
            "data must have the classes of the model, got only in the data: 'plain-ring', "
            "'plain-star'; nearest is 'dotted-ring'",
        ),
        (
            "evaluate --model {model} --data digits --out o",
            "img_size must be 8, as in data 'digits', got 32 in the model",
        ),
        (
            "evaluate --model {model} --data nowhere --out o",
            "data must be a known source, got 'nowhere'; nearest is 'others'",
        ),
        (
            "predict --model {model} --data {data} --out o.txt",
            "out must end in .csv or .jsonl, got 'o.txt'",
        ),
        (
            "predict --model {model} --data {data} --out there.csv",
            "out must be new, got {here}/there.csv, which exists",
        ),
        (
            "predict --model {model} --data full --out o.csv",
            "data must hold images, got none in 'full'",
        ),
        (
            "predict --model {model} --data '*.gif' --out o.csv",
            "data must hold images, got none in '*.gif'",
        ),
        (
            "predict --model {model} --data nowhere.png --out o.csv",
            "data must exist, got 'nowhere.png'",
        ),
        (
            "predict --model {model} --data no.parquet --out o.csv",
            "data must be Parquet that can be read, got no.parquet in {here}: Parquet file "
            "size is 4 bytes, smaller than the minimum file footer (8 bytes)",
        ),
        (
            "predict --model {model} --data label.parquet --out o.csv",
            "data must have a column of images (struct of bytes and path, or bytes), got label: "
            "int64 in label.parquet in {here}",
        ),
        (
            "predict --model {model} --data {data} --out o.csv --top-k 0",
            "top_k must be at least 1, got 0",
        ),
        ("predict --model {model} --out o.csv", "--data must be given"),
    ],
)
def test_wrong_input_is_one_line(
    refused: Refused, model: Path, data: Path, tmp_path: Path, line: str, said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("")
    (tmp_path / "there.csv").write_text("")
    (tmp_path / "no.parquet").write_text("PAR0")
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "label.parquet")
    drawn_folder(tmp_path / "splits", classes=CLASSES, size=8, splits={"train": 1, "val": 1})
    others = drawn_folder(tmp_path / "others", classes=CLASSES, per_class=1, size=8)
    (others / "striped-triangle").rename(others / "plain-star")
    drawn_folder(tmp_path / "more", classes=13, per_class=1, size=8)
    (tmp_path / "more" / "plain-disc").rename(others / "plain-ring")
    given = {"model": model, "data": data, "here": tmp_path}
    assert refused(line.format(**given)) == said.format(**given)


def test_storage_that_fails_is_said_and_nothing_is_left(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way: no image is at fault, and none is counted as bad. Each image was read once
    before, to see of what kind the pictures are."""
    there = FileTable.read
    asked: list[int] = []

    def fails_later(table: FileTable, index: int) -> bytes:
        asked.append(index)
        if len(asked) == 10 * CLASSES + 20:
            raise OSError(5, "Input/output error")
        return there(table, index)

    monkeypatch.setattr(FileTable, "read", fails_later)
    for line in (
        f"predict --data {data} --out o.csv",
        f"evaluate --data {data} --out o --split all",
    ):
        asked.clear()
        said = run(f"{line} --model {model} --batch-size 8")
        assert said == (1, "", "error: nothing was written: [Errno 5] Input/output error\n")
    assert list(tmp_path.iterdir()) == []
