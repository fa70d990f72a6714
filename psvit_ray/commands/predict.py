"""Answers for images with an exported model: one row each, in the order given.

    psvit predict --model model/ --data photos/ one.jpg --out answers.csv
    psvit predict --model model/ --data "s3://bucket/photos/*.parquet" --out answers.jsonl
    find photos -name "*.jpg" | psvit predict --model model/ --data - --out answers.csv

A few images are answered for in this process, many by Ray actors. An image that cannot be read has
a row that says why.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import torch
from ray.exceptions import RayError

from psvit_ray.commands import paths
from psvit_ray.commands.options import PredictJob
from psvit_ray.data.images.decode import check_decoder
from psvit_ray.data.sources import unlabelled
from psvit_ray.data.sources.survey import survey
from psvit_ray.data.sources.unlabelled import ImageGroup
from psvit_ray.data.splits.layout import DataLayout
from psvit_ray.export import model_folder
from psvit_ray.export.inference import Prediction, score_batches, to_predictions
from psvit_ray.export.model_folder import ExportedModel
from psvit_ray.report.evaluation import predictions
from psvit_ray.report.progress import with_progress
from psvit_ray.runtime.batch import inference_actors
from psvit_ray.runtime.cluster import cluster
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import new_file

FEW_IMAGES = 2000
"""Number of images below which starting Ray does not pay."""
IMAGES_OF_A_CALL = 256


def work(job: PredictJob) -> int:
    check_decoder(job.decoder)
    out = Folder.at(job.out)
    exported = model_folder.load_model_folder(job.model)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    parts = unlabelled.read_unlabelled(
        job.data, sys.stdin, DataLayout(image_column=job.image_column)
    )
    given = exported.preprocessing
    surveyed = survey(*(part.table for part in parts)).unlike(given.tones)
    for note in surveyed.notes(given.tones, given.background):
        print(note)
    top_k = min(job.top_k, len(exported.class_names))
    images = bad = 0
    try:
        with new_file(out) as file:
            write = predictions.writer(file, paths.suffix_of(out), exported.class_names, top_k)
            total = sum(len(part.table) for part in parts)
            for name, answer in with_progress(answered(job, exported, parts, top_k), total):
                write(name, answer)
                images += 1
                bad += bool(answer.reason)
    except (OSError, RayError) as error:
        cause = getattr(error, "cause", error)  # without Ray's remote traceback
        print(f"error: nothing was written: {files.error_text(cause)}", file=sys.stderr)
        return 1
    unreadable = f", of which {bad:,} cannot be read, as their rows say" if bad else ""
    print(f"{images:,} images{unreadable}: {out}")
    return 0


def answered(
    job: PredictJob, exported: ExportedModel, parts: list[ImageGroup], top_k: int
) -> Iterator[tuple[str, Prediction]]:
    """Name and answer of each image, in order."""
    images = sum(len(part.table) for part in parts)
    if job.workers == 0 or (job.workers is None and images < FEW_IMAGES):
        yield from in_this_process(job, exported, parts, top_k)
        return
    cluster.join(verbose=job.verbose)
    resources = cluster.amounts_per_worker(job.resources)
    workers = job.workers or max(1, cluster.workers_that_fit(resources))
    cluster.check_workers(workers, resources)
    for part in parts:
        cluster.check_readable(part.table, part.name(0))
    pieces = list(unlabelled.chunks(parts, IMAGES_OF_A_CALL))
    predictions_of_pieces = inference_actors.predict_tables(
        exported,
        (piece.table for piece in pieces),
        workers=min(workers, len(pieces)),
        resources_per_worker=resources,
        batch_size=job.batch_size,
        top_k=top_k,
        decoder=job.decoder,
    )
    for piece, several in zip(pieces, predictions_of_pieces, strict=True):
        for index, answer in enumerate(several):
            yield piece.name(index), answer


def in_this_process(
    job: PredictJob, exported: ExportedModel, parts: list[ImageGroup], top_k: int
) -> Iterator[tuple[str, Prediction]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = exported.model.to(device)
    for part in parts:
        batches = score_batches(
            model,
            part.table,
            exported.preprocessing,
            device=device,
            batch_size=job.batch_size,
            processes=job.num_loaders,
            decoder=job.decoder,
        )
        for index, answer in enumerate(to_predictions(batches, top_k)):
            yield part.name(index), answer
