"""The data that a configuration names, checked against its network."""

from __future__ import annotations

from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.data.splits.split_file import SplitFile
from psvit_ray.training.config import Configuration


def load_source(configuration: Configuration, known: SplitFile | None = None) -> Source:
    """The data of a configuration, split as its settings or the split file `known` say.

    Raises ValueError for data that cannot be used, and where the spec asks for other images.
    """
    source = load_data(configuration.train, known)
    source.check_fits(configuration.trained_spec, configuration.train.batch_size)
    return source
