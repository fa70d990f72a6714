"""The data that a configuration names, checked against its network."""

from __future__ import annotations

import numpy as np

from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.data.splits.split_file import SplitFile
from psvit_ray.training.config import Configuration


def load_source(configuration: Configuration, known: SplitFile | None = None) -> Source:
    """The data of a configuration, split as its settings or the split file `known` say.

    Raises ValueError for data that cannot be used, and where the spec asks for other images.
    """
    source = load_data(configuration.train, known)
    check_fits(configuration, source)
    return source


def check_fits(configuration: Configuration, source: Source) -> None:
    """Raises ValueError if the images are not those that the spec asks for, if a batch has more
    images than there are to train on, or if the hold-out does not have the ranking metric."""
    train = configuration.train
    source.check_fits(configuration.trained_spec, train.batch_size)
    if train.metric != "auroc":
        return
    if source.num_classes != 2:
        raise ValueError(
            f"metric must be top1, balanced_top1, f1 or loss with the {source.num_classes:,} "
            f"classes of data {source.name!r}, got 'auroc', which is for two"
        )
    if len(np.unique(source.holdout.labels)) < 2:
        raise ValueError(
            "metric 'auroc' needs images of both classes in the hold-out, got one class; a larger "
            "--holdout has both"
        )
