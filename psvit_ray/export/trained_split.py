"""Data split as in the training of an exported model, by the split file in the model's folder."""

from __future__ import annotations

from dataclasses import dataclass

from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.splits.layout import AS_NAMED, DataLayout, DataSettings
from psvit_ray.data.splits.split_file import SplitFile, left_out
from psvit_ray.export.model_folder import ExportedModel, read_splits
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

DRAWN_ANEW = (
    "the model's folder has no splits.parquet, as an earlier version wrote it: the hold-out is cut "
    "anew, and may hold images that the model was trained on"
)


@dataclass(frozen=True)
class TrainedData:
    """Stored data, and how the training of a model split it."""

    stored: Source
    exported: ExportedModel
    is_training_data: bool
    """Whether the model was trained on this data, even if images were added to it since."""
    known: SplitFile | None
    """Split of the data in the training; None for other data, and if the model's folder has no
    split file."""

    @classmethod
    def read(
        cls, data: str, layout: DataLayout, exported: ExportedModel, model: str
    ) -> TrainedData:
        """Reads `data` for the model `exported`, which is in the folder `model`. The layout of its
        own training data need not be given again.

        Raises ValueError for data that cannot be used, and if the model's folder was changed.
        """
        training = exported.config.training
        given = DataLayout.model_validate({f: getattr(layout, f) for f in DataLayout.model_fields})
        same_path = Folder.at(training.data) == Folder.at(without_secrets(data))
        is_training_data = same_path and given in (AS_NAMED, training.layout)
        stored = read_data(data, training.layout if is_training_data else given)
        known = read_splits(model, exported) if is_training_data else None
        return cls(stored, exported, is_training_data, known)

    def divided(self) -> tuple[Source, list[str]]:
        """The data split as in the model's training, by its split file or else by its settings; and
        notes for the user.

        Raises ValueError if no hold-out can be cut.
        """
        if self.known:
            source = self.stored.divided_as(self.known)
            assert source.images
            return source, left_out(self.known, source.images)
        settings = self.exported.config.training.settings
        source = self.stored.divided(
            DataSettings(
                holdout=settings["holdout"],
                split_seed=settings["split_seed"],
                test_fraction=settings.get("test_fraction", 0.0),
                val_as_test=settings["val_as_test"] and "val" in self.stored.tables,
            )
        )
        return source, [DRAWN_ANEW] if self.is_training_data and source.cut_by_place else []
