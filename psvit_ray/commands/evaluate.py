"""Scores an exported model on labelled images: accuracy, per class, confusion, calibration.

    psvit evaluate --model model/ --data photos/ --out evaluation/
    psvit evaluate --model s3://bucket/model --data "shards/test-*.parquet" --out e/

Without --split: the test images where the data has some; else, of the data that the model was
trained on, the hold-out; else the validation images; else all. Data that the model was trained on
is split as it was then, by the splits.parquet of the model's folder: images that were added since
are not scored. An image that cannot be read counts
as wrong. The calibration error is that of 15 bins of equal width.

--run or --tracking-uri write the evaluation to MLflow too, below the run of the model's training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from psvit_ray.commands.options import EvaluateJob, EvaluationSplit
from psvit_ray.data.images.decode import check_decoder
from psvit_ray.data.sources.image_source import Source, numbers_in
from psvit_ray.data.sources.survey import survey
from psvit_ray.data.tables import ImageTable
from psvit_ray.export import model_folder
from psvit_ray.export.inference import score_batches
from psvit_ray.export.model_folder import ExportedModel
from psvit_ray.export.trained_split import TrainedData
from psvit_ray.report.evaluation import evaluation_files
from psvit_ray.report.evaluation.binary_curves import binary_result
from psvit_ray.report.evaluation.metrics import LabelledPredictions
from psvit_ray.report.progress import with_progress
from psvit_ray.search.description import read_training
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import new_folder
from psvit_ray.text.messages import quoted_list
from psvit_ray.text.printable import printable
from psvit_ray.text.secrets import without_secrets

TRAINING: dict[Literal["train", "holdout", "test"], str] = {
    "train": "the model was trained on",
    "holdout": "training held out",
    "test": "training kept for the test",
}


def work(job: EvaluateJob) -> int:
    check_decoder(job.decoder)
    out = Folder.at(job.out)
    exported = model_folder.load_model_folder(job.model)
    store, run_id = mlflow_run(job, exported)
    split, table, stored, notes = images_of(job, exported)
    given = exported.preprocessing
    notes += survey(table).unlike(given.tones).notes(given.tones, given.background)
    if job.threshold is not None and len(exported.class_names) != 2:
        raise ValueError(
            f"threshold is for a model of two classes, got one of {len(exported.class_names):,}"
        )
    labels = labels_in_model(table, stored.class_names, exported.class_names)
    counts = np.bincount(labels, minlength=len(exported.class_names))
    absent = [name for name, n in zip(exported.class_names, counts, strict=True) if not n]
    about = {
        "model": without_secrets(job.model),
        "spec_id": exported.config.spec.spec_id,
        "data": stored.name,
        "split": split,
        **({"notes": notes} if notes else {}),
        **({"absent_classes": absent} if absent else {}),
    }
    for note in [*stored.notes, *notes]:
        print(printable(note))
    if absent:
        print(
            f"no image of class {quoted_list(absent)}: scored on {len(counts) - len(absent):,} of "
            f"{len(counts):,} classes"
        )
    title = f"{exported.config.spec.pattern}: {split} of {stored.name}"
    try:
        answers = answers_of(job, exported, table, labels)
        curves = binary_result(answers, job.threshold)
        with new_folder(out) as folder:
            evaluation_files.write(
                answers,
                folder,
                about=about,
                title=title,
                place=table.place,
                image_of=lambda index: given.picture(table.read(index), job.decoder),
                num_hardest=job.num_hardest,
                curves=curves,
            )
            if store:
                write_run(store, run_id, title, folder)
    except OSError as error:  # of storage; that of a single image is none
        print(f"error: nothing was written: {files.error_text(error)}", file=sys.stderr)
        return 1
    print(f"{title}\n{evaluation_files.summary(answers, curves)}\nwritten: {out}")
    return 0


def mlflow_run(job: EvaluateJob, exported: ExportedModel) -> tuple[str, str]:
    """MLflow's store and the id of the training's run in it, checked; both are empty where neither
    was asked for. Raises ValueError where the store does not have the run."""
    if not job.run and job.tracking_uri is None:
        return "", ""
    from psvit_ray.runtime.tracking import evaluation_run, store_uri

    folder = Folder.at(job.run or ".")
    run_id = read_training(folder).run_id if job.run else exported.config.training.run_id
    store = store_uri.resolve_uri(job.tracking_uri, files.parent(folder)[0])
    evaluation_run.training_run(store, run_id)
    return store, run_id


def write_run(store: str, run_id: str, title: str, folder: Path) -> None:
    """Writes the evaluation in `folder` as a run below that of the training."""
    from psvit_ray.runtime.tracking import evaluation_run

    content = json.loads((folder / "metrics.json").read_text())
    evaluation = evaluation_run.write(
        store,
        evaluation_run.training_run(store, run_id),
        name=f"evaluation: {title}",
        tags={f"psvit.{name}": content[name] for name in ("model", "spec_id", "data", "split")},
        metrics=dict(evaluation_files.flat_numbers(content)),
        folder=folder,
    )
    print(f"MLflow: run {evaluation} below {run_id}")


def answers_of(
    job: EvaluateJob, exported: ExportedModel, table: ImageTable, labels: np.ndarray
) -> LabelledPredictions:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = score_batches(
        exported.model.to(device),
        table,
        exported.preprocessing,
        device=device,
        batch_size=job.batch_size,
        processes=job.num_loaders,
        decoder=job.decoder,
    )
    batches = with_progress(
        batches, len(table), size=lambda batch: len(batch.indices) + len(batch.bad)
    )
    return LabelledPredictions.of(batches, labels, exported.class_names)


def images_of(
    job: EvaluateJob, exported: ExportedModel
) -> tuple[EvaluationSplit, ImageTable, Source, list[str]]:
    """The split, its images, the data, and what a user should be told of them. Raises ValueError
    where the data does not have this split, or images that the model does not take."""
    data = TrainedData.read(job.data, job, exported, job.model)
    stored, known = data.stored, data.known
    for field in ("img_size", "in_chans"):
        of_model, of_data = getattr(exported.preprocessing, field), getattr(stored, field)
        if of_data is not None and of_data != of_model:
            raise ValueError(
                f"{field} must be {of_data}, as in data {stored.name!r}, got {of_model} in the "
                "model"
            )
    there: list[EvaluationSplit] = ["train", "holdout"]
    val_as_test = exported.config.training.settings["val_as_test"] and "val" in stored.tables
    if known:
        there = [split for split in TRAINING if len(known.indices(split))]
    elif stored.test is not None or val_as_test:
        there.append("test")
    usual = there[-1]
    if list(stored.tables) == ["train"]:
        there.append("all")
        usual = usual if data.is_training_data else "all"
    split = job.split or usual
    if split not in there:
        options = f"{', '.join(there[:-1])} or {there[-1]}"
        raise ValueError(f"split must be {options} with data {stored.name!r}, got {split!r}")
    if split == "all":
        return split, stored.train, stored, []
    images = stored.holdout if val_as_test else stored.test
    if split == "test" and images is not None and not known:
        return split, images, stored, []  # which do not depend on how the others are cut
    source, notes = data.divided()
    table = {"train": source.train, "holdout": source.holdout, "test": source.test}[split]
    number = len(table) if table else 0
    if known:
        then = len(known.indices(split))
        these = f"the {then:,} images" if number == then else f"{number:,} of the {then:,} images"
        notes = [f"{split}: {these} that {TRAINING[split]}", *notes]
    if table is None or not number:
        raise ValueError(f"data must have images of split {split!r}, got {'; '.join(notes)}")
    return split, table, stored, notes


def labels_in_model(table: ImageTable, data: tuple[str, ...], model: tuple[str, ...]) -> np.ndarray:
    """(N,) int64: the number in the model of each image's class. A class of the data that no image
    has need not be one of the model's."""
    used, labels = np.unique(table.labels, return_inverse=True)
    return numbers_in_model(tuple(data[number] for number in used), model)[labels]


def numbers_in_model(data: tuple[str, ...], model: tuple[str, ...]) -> np.ndarray:
    """The number in the model of each class of the data. The data may lack classes of the model;
    raises ValueError, naming the nearest, for one that the model does not know."""
    return numbers_in(model, data, rule="the classes of the model", where="the data")
