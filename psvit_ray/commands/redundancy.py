"""How alike the attention maps of a network's layers are, and the sharing that this proposes.

    psvit redundancy --model model/ --data photos/ --out redundancy/
    psvit redundancy --model timm:deit_tiny_patch16_224 --data shards/ --out redundancy/
    psvit redundancy --model model/ --data photos/ --out r/ --followers 4

Over images of the hold-out, or of the validation split where the data has one: never the test
images. What the similarity is and how it proposes a sharing,
psvit_ray/model/attention_similarity.py says; jobs/studies/sharing_study.py measures what the
proposal is worth. The pattern is one for --arch.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.commands.options import RedundancyJob
from psvit_ray.data.images.decode import check_decoder
from psvit_ray.data.loading.loader import eval_loader
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.sources.survey import surveyed
from psvit_ray.data.splits.layout import DataSettings
from psvit_ray.data.tables import ImageTable
from psvit_ray.export import model_folder
from psvit_ray.export.model_folder import ExportedModel
from psvit_ray.export.networks import TIMM, load_network
from psvit_ray.export.trained_split import TrainedData
from psvit_ray.model.attention_similarity import (
    Redundancy,
    attention_blocks,
    measure_redundancy,
    propose,
    propose_followers,
)
from psvit_ray.model.psvit import PSViT
from psvit_ray.model.timm_vit import from_timm
from psvit_ray.report import redundancy
from psvit_ray.report.progress import with_progress
from psvit_ray.report.redundancy import SharingProposal
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import new_folder
from psvit_ray.text.secrets import without_secrets


def work(job: RedundancyJob) -> int:
    check_decoder(job.decoder)
    out = Folder.at(job.out)
    model, preprocessing, exported = network_of(job)
    check_maps(model)
    source, notes = holdout_source(job, preprocessing, exported)
    if not isinstance(model, PSViT):  # trained on pictures of 8 bits
        tones, of_pictures = surveyed(source.name, source.train, {}, None, preprocessing.background)
        preprocessing = preprocessing.model_copy(update={"tones": tones})
        notes += of_pictures
    spec, reason = described(model)
    try:
        measured, num_unreadable = measured_on(job, model, preprocessing, source.holdout)
        proposal = SharingProposal(
            model=without_secrets(job.model),
            data=source.name,
            seed=job.seed,
            num_unreadable=num_unreadable,
            threshold=job.threshold if job.followers is None else None,
            max_group=job.max_group,
            pattern=(
                propose(measured.similarity, job.threshold, job.max_group)
                if job.followers is None
                else propose_followers(measured.similarity, job.followers, job.max_group)
            ),
            spec=spec,
            redundancy=measured,
        )
        with new_folder(out) as folder:
            redundancy.write(proposal, folder)
    except OSError as error:  # of storage; that of a single image is none
        print(f"error: nothing was written: {files.error_text(error)}", file=sys.stderr)
        return 1
    print("\n".join([redundancy.summary(proposal), *notes]))
    if reason:
        print(f"MACs are not known: {reason}")
    if num_unreadable:
        print(f"{num_unreadable:,} images cannot be read and are left out")
    print(f"written: {out}")
    return 0


def network_of(job: RedundancyJob) -> tuple[nn.Module, Preprocessing, ExportedModel | None]:
    """The network in evaluation mode, its preprocessing and, where it is of one, the exported
    folder, by which its hold-out is known. Raises ValueError where there is no such network."""
    name = named(job.model)
    if not name.startswith(TIMM):
        if job.model_checkpoint:
            raise ValueError(f"model must be timm:NAME with model_checkpoint, got {job.model!r}")
        exported = model_folder.load_model_folder(name)
        return exported.model, exported.preprocessing, exported
    model = load_network(name, job.model_checkpoint, field="model").model
    takes = resolve_model_data_config(model)
    in_chans, height, width = takes["input_size"]
    if height != width:
        raise ValueError(f"model must take square images, got {name}, of {height} x {width}")
    preprocessing = Preprocessing(
        img_size=height,
        in_chans=in_chans,
        **{field: takes[field] for field in ("mean", "std", "interpolation", "crop_pct")},
    )
    return model, preprocessing, None


def named(model: str) -> str:
    """A folder, or timm:NAME. Raises ValueError, with the nearest, for what is neither."""
    if model.startswith(TIMM) or "/" in model or Path(model).exists():
        return model
    if timm.is_model(model):
        return TIMM + model
    near = difflib.get_close_matches(model, timm.list_models(), n=1, cutoff=0.0)[0]
    raise ValueError(
        f"model must be an exported folder or a network of timm's, got {model!r}; timm's nearest "
        f"is {TIMM}{near}"
    )


def check_maps(model: nn.Module) -> None:
    """Raises ValueError, with the nearest of timm's that has them, for a network without maps."""
    try:
        attention_blocks(model)
    except ValueError as error:
        usable = timm.list_models(module=["vision_transformer", "deit"])
        name = getattr(model, "pretrained_cfg", {}).get("architecture", "")
        near = difflib.get_close_matches(name, usable, n=1, cutoff=0.0)[0]
        raise ValueError(f"{error}; nearest is {TIMM}{near}") from None


def holdout_source(
    job: RedundancyJob, preprocessing: Preprocessing, exported: ExportedModel | None
) -> tuple[Source, list[str]]:
    """Split as in the network's training, and what a user should be told of that. Raises ValueError
    for images of one size, which are not made to fit, where the network takes another."""
    data = TrainedData.read(job.data, job, exported, named(job.model)) if exported else None
    stored = data.stored if data else read_data(job.data, job)
    for field in ("img_size", "in_chans"):
        of_model, of_data = getattr(preprocessing, field), getattr(stored, field)
        if of_data is not None and of_data != of_model:
            raise ValueError(
                f"{field} must be {of_data}, as in data {stored.name!r}, got {of_model} in the "
                "model"
            )
    return data.divided() if data else (stored.divided(DataSettings()), [])


def described(model: nn.Module) -> tuple[ArchSpec | None, str]:
    """The spec of a network, or why there is none."""
    if isinstance(model, PSViT):
        return model.spec, ""
    try:
        return from_timm(cast(Any, model)).spec, ""
    except ValueError as error:
        return None, str(error)


def measured_on(
    job: RedundancyJob, model: nn.Module, preprocessing: Preprocessing, table: ImageTable
) -> tuple[Redundancy, int]:
    """And how many images cannot be read. Raises ValueError where none can."""
    drawn = np.random.default_rng(job.seed).permutation(len(table))[: job.num_images]
    table = table.take(np.sort(drawn))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = eval_loader(
        table,
        preprocessing,
        job.batch_size,
        processes=min(job.num_loaders, -(-len(table) // job.batch_size)),
        decoder=job.decoder,
        pin_memory=device.type == "cuda",
    )
    num_bad = 0

    def images() -> Iterator[Tensor]:
        nonlocal num_bad
        for batch in with_progress(
            loader, len(table), size=lambda batch: len(batch.indices) + len(batch.bad)
        ):
            num_bad += len(batch.bad)
            if len(batch.images):
                yield preprocessing.normalize(batch.images.to(device, non_blocking=True))
        if num_bad == len(table):
            raise ValueError(f"none of the {num_bad:,} hold-out images can be read")

    measured = measure_redundancy(model.to(device), images())
    return measured, num_bad
