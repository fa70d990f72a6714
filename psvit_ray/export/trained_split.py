"""How data was split in the training of an exported model: by the file of splits in its folder."""

from __future__ import annotations

from dataclasses import dataclass

from psvit_ray.data.sources import image_source
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.splits.layout import AS_NAMED, DataLayout
from psvit_ray.data.splits.split_file import SplitFile
from psvit_ray.data.splits.splits import Splits
from psvit_ray.export.model_folder import ExportedModel, read_splits
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

DRAWN_ANEW = (
    "the model's folder has no splits.parquet, as an earlier version wrote it: the hold-out is cut "
    "anew, and may hold images that the model was trained on"
)


@dataclass(frozen=True)
class TrainedData:
    """Data as it is stored, seen from a model."""

    stored: Splits
    exported: ExportedModel
    is_training_data: bool
    """The model was trained on this data, whatever was added to it since."""
    known: SplitFile | None
    """How it was split then; None for other data, and where the model's folder does not say it."""

    @classmethod
    def read(
        cls, data: str, layout: DataLayout, exported: ExportedModel, model: str
    ) -> TrainedData:
        """`model` is the folder of the exported one. What its training said of the layout of its
        own data need not be said again.

        Raises ValueError for data that cannot be used, and where the model's folder is not as it
        was written.
        """
        trained = exported.config.training
        said = DataLayout.model_validate({f: getattr(layout, f) for f in DataLayout.model_fields})
        same_place = Folder.at(trained.data) == Folder.at(without_secrets(data))
        is_its_own = same_place and said in (AS_NAMED, trained.layout)
        stored = image_source.read(data, trained.layout if is_its_own else said)
        known = read_splits(model, exported) if is_its_own else None
        return cls(stored, exported, is_its_own, known)

    def divided(self) -> tuple[Source, list[str]]:
        """Split as in the model's training, by its file of splits or else by its settings; and what
        a user should be told of that.

        Raises ValueError where no hold-out can be cut.
        """
        if self.known:
            source = image_source.divided_as(self.stored, self.known)
            assert source.images
            return source, image_source.left_out(self.known, source.images)
        settings = self.exported.config.training.settings
        source = image_source.divided(
            self.stored,
            holdout=settings["holdout"],
            split_seed=settings["split_seed"],
            val_as_test=settings["val_as_test"] and self.stored.val is not None,
        )
        return source, [DRAWN_ANEW] if self.is_training_data and source.cut_by_place else []
