"""The data that a configuration names, checked against its network."""

from __future__ import annotations

from psvit_ray.data.sources import image_source
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.splits.split_file import SplitFile
from psvit_ray.training.config import Configuration, TrainConfig


def load_source(configuration: Configuration, known: SplitFile | None = None) -> Source:
    """The data of a configuration, split as its settings or the split file `known` say.

    Raises ValueError for data that cannot be used, and where the spec asks for other images.
    """
    source = source_from_settings(configuration.train, known)
    check_source(configuration, source)
    return source


def source_from_settings(train: TrainConfig, known: SplitFile | None = None) -> Source:
    """The data of a training, split as the settings or the split file `known` say. Raises
    ValueError for data that cannot be used."""
    return image_source.load_data(
        train.data,
        train,
        holdout=train.holdout,
        split_seed=train.split_seed,
        fraction=train.data_fraction,
        val_as_test=train.val_as_test,
        tone_range=train.tone_range,
        background=train.background,
        known=known,
    )


def check_source(configuration: Configuration, source: Source) -> None:
    """Raises ValueError if the data's size, channels or classes are not those of the spec, or if a
    batch has more images than the data."""
    spec, train = configuration.trained_spec, configuration.train
    for name in ("img_size", "in_chans", "num_classes"):
        got, expected = getattr(spec, name), getattr(source, name)
        if expected is not None and got != expected:
            raise ValueError(f"{name} must be {expected}, as in data {source.name!r}, got {got}")
    if spec.in_chans not in (1, 3):
        raise ValueError(f"in_chans must be 1 or 3, as pictures have, got {spec.in_chans}")
    if train.batch_size > len(source.train):
        raise ValueError(
            f"batch_size must be at most {len(source.train):,}, the training images of data "
            f"{source.name!r}, got {train.batch_size}"
        )
