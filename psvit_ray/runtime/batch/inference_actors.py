"""Long-lived actors that hold a model and predict one table of images after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ray
import torch
from ray.util import ActorPool

from psvit_ray.data.images.options import Decoder
from psvit_ray.data.tables import ImageTable
from psvit_ray.export.inference import Prediction, score_batches, to_predictions
from psvit_ray.export.model_folder import ExportedModel

WAITING = 2
"""Number of tables that are given to an actor at once, so that it never waits for the next."""
MAX_FAILURES = 3


@ray.remote
class InferenceActor:
    """An actor that holds a model, on the GPU where it was given one."""

    def __init__(
        self, held: list[ray.ObjectRef], batch_size: int, top_k: int, decoder: Decoder
    ) -> None:
        """`held` is a list of one reference, to the ExportedModel. As an argument of its own Ray
        would warn that a restart may miss it: whoever started this actor keeps it."""
        exported: ExportedModel = ray.get(held[0])
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = exported.model.to(self._device)
        self._preprocessing = exported.preprocessing
        self._batch_size, self._top_k, self._decoder = batch_size, top_k, decoder

    def answers(self, table: ImageTable) -> list[Prediction]:
        """The answers to the images of a table, in its order."""
        batches = score_batches(
            self._model,
            table,
            self._preprocessing,
            device=self._device,
            batch_size=self._batch_size,
            decoder=self._decoder,
        )
        return list(to_predictions(batches, self._top_k))


def predict_tables(
    exported: ExportedModel,
    tables: Iterable[ImageTable],
    *,
    workers: int,
    resources_per_worker: dict[str, float],
    batch_size: int,
    top_k: int,
    decoder: Decoder,
) -> Iterator[list[Prediction]]:
    """The answers to each table, in order. An actor that dies is started again, and answers its
    tables anew; raises RayActorError where one dies over and over."""
    model_ref = ray.put(exported)
    kind: Any = InferenceActor
    actors = [
        kind.options(
            num_cpus=resources_per_worker.get("CPU", 0),
            num_gpus=resources_per_worker.get("GPU", 0),
            max_restarts=MAX_FAILURES,
            max_task_retries=MAX_FAILURES,
        ).remote([model_ref], batch_size, top_k, decoder)
        for _ in range(workers)
    ]
    pool = ActorPool(actors * WAITING)
    for table in tables:
        if not pool.has_free():
            yield pool.get_next()
        pool.submit(lambda actor, table: actor.answers.remote(table), table)
    while pool.has_next():
        yield pool.get_next()
