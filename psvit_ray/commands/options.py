"""The options of every command: what `psvit COMMAND --help` shows.

Nothing here imports torch, Ray or MLflow, so that help and wrong flags are answered at once.
"""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

import tyro
from pydantic import Field, field_validator

from psvit_ray.arch.compact_set import DeitSize
from psvit_ray.arch.latency import Conditions
from psvit_ray.arch.spec import ArchSpec, Finite, Value
from psvit_ray.data.images.options import Decoder
from psvit_ray.data.shards.settings import ShardSettings
from psvit_ray.data.splits.layout import DataLayout
from psvit_ray.runtime.cluster.config import WorkerResources
from psvit_ray.runtime.session.config import Resume, SessionConfig
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.search.time_plan import MAX_TRIALS, TimePlan
from psvit_ray.training.config import (
    BatchSize,
    Fraction,
    NonNegativeCount,
    PositiveCount,
    PositiveNumber,
    Processes,
    ProcessesOrZero,
    Repeats,
    Seed,
    TrainConfig,
)

EvaluationSplit = Literal["train", "holdout", "test", "all"]

RESUMABLE = {"num_trials", "max_hours", "max_gpu_hours"}
RESUMABLE_ONESHOT = {"candidates", "supernet_workers", "finalists", "finalist_seeds"}
"""Fields of a search that a resume may change: how much is tried, and how fast."""


class ResumableJob(Value):
    """A command whose work goes on with `--resume`."""

    launch: SessionConfig = SessionConfig()
    argv: Annotated[tuple[str, ...], tyro.conf.Suppress, Field(exclude=True)] = ()
    """Options as they stood on the command line."""

    @property
    def given(self) -> frozenset[str]:
        """Names of the options on the command line."""
        flags = (word.partition("=")[0] for word in self.argv if word.startswith("--"))
        return frozenset(flag.removeprefix("--").replace("-", "_") for flag in flags)

    def resume_command(self, name: str) -> str:
        """The command line that goes on with what this one began under `name`."""
        words, rest = [], iter(self.argv)
        for word in rest:
            if word in ("--name", "--resume"):
                next(rest)
            elif not word.startswith(("--name=", "--resume=")):
                words.append(word)
        command = type(self).__name__.removesuffix("Job").lower()
        return shlex.join(["psvit", command, *words, "--name", name, "--resume"])


class TuneJob(ResumableJob):
    """Search token pooling and attention sharing with Ray Tune.

    Without a cluster, Ray is started on this machine. The search ends with a leaderboard, a
    best.yaml and a picture in STORAGE/NAME. Ctrl-C ends it in order, and --resume goes on.
    """

    recipe: str = "digits"
    """Recipe that gives the other options their defaults: a name that `psvit recipes` lists, or the
    path of a YAML file; by default `images` where --data names other images than digits."""
    size: DeitSize | None = None
    """Size of the DeiT around which the compact set of the recipe `images` lies; by default
    tiny."""
    train: TrainConfig = TrainConfig()
    search: SearchConfig
    strategy: Literal["scratch", "oneshot"] = "scratch"
    """Way of searching: scratch trains each configuration on its own, oneshot trains one supernet
    and scores candidates with its weights."""
    oneshot: OneshotConfig = OneshotConfig()
    trials: Trials = Trials()
    register_as: Annotated[str, tyro.conf.arg(name="register")] = ""
    """Name in MLflow's model registry that gets the winner as a new version."""
    dry_run: bool = False
    """Print the whole configuration and an estimate of the time, and start nothing."""
    time_plan: Annotated[TimePlan | None, tyro.conf.Suppress, Field(exclude=True)] = None
    """Plan that the hours of the search were shared out by, if they were."""

    def planned(self, plan: TimePlan) -> TuneJob:
        """This job with trainings as long as a plan says, but for what was given as an option."""
        train: dict[str, float] = {
            "epochs": plan.epochs,
            "data_fraction": plan.data_fraction,
            "warmup_epochs": self.train.warmup_epochs * plan.epochs / self.train.epochs,
        }
        search: dict[str, float] = {"grace_epochs": plan.grace_epochs, "num_trials": MAX_TRIALS}

        def decided(values: dict[str, float]) -> dict[str, float]:
            return {name: value for name, value in values.items() if name not in self.given}

        return self.model_copy(
            update={
                "train": self.train.model_copy(update=decided(train)),
                "search": self.search.model_copy(update=decided(search)),
                "time_plan": plan,
            }
        )

    @property
    def identity(self) -> dict[str, object]:
        """What a resume must not change: all but how much is tried, and how fast."""
        identity: dict[str, object] = {
            "train": self.train.model_dump(mode="json"),
            "search": self.search.model_dump(mode="json", exclude=RESUMABLE),
        }
        if self.strategy == "oneshot":
            identity["oneshot"] = self.oneshot.model_dump(mode="json", exclude=RESUMABLE_ONESHOT)
        if self.time_plan:
            identity["time_plan"] = self.time_plan.model_dump(mode="json")
        return identity


class TrainJob(ResumableJob):
    """Train one PSViT or DeiT with Ray Train, and score the test images once, at the end."""

    recipe: str = "digits"
    """Recipe that gives the other options their defaults: a name that `psvit recipes` lists, or the
    path of a YAML file; by default `images` where --data names other images than digits."""
    arch: str | None = None
    """Architecture: a preset, a pattern such as 2-2|2-1-2|2 (with the widths of the recipe's base),
    a spec.json, an exported folder, or the best.yaml of a search, whose training settings then come
    before those of the recipe. By default the recipe's base."""
    base: Annotated[ArchSpec | None, tyro.conf.Suppress] = None
    size: DeitSize | None = None
    """Size of the DeiT around which the compact set of the recipe `images` lies; by default
    tiny."""
    train: TrainConfig = TrainConfig()
    workers: str = "1"
    """Training workers (DDP): a number, or MIN:MAX to go on with fewer workers when a host is lost
    and with more when a host comes. Batch size and learning rate stay the same."""
    patience_s: PositiveNumber = 300.0
    """Seconds after which a worker that does not come to a step is named, and all workers are
    restarted."""
    resources: WorkerResources = WorkerResources()

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, text: str) -> str:
        WorkerRange.of(text)
        return text


class CompareJob(ResumableJob):
    """Compare the winner of a search with DeiT over several seeds.

    The baseline is the best DeiT of its search; the winner is the best PSViT that has no more MACs
    than the baseline or, where a budget is given, each is the best within the budget. Both train
    from scratch with the settings that they had in their searches, on the images of the search.
    """

    search: str
    """Name of the search whose best PSViT is compared."""
    baseline_search: str | None = None
    """Name of the search whose best DeiT is the baseline; by default the same search."""
    budget_gmacs: PositiveNumber | None = None
    """Billion multiply-accumulates that winner and baseline may have at most; by default the winner
    has no more than the best DeiT."""
    seeds: Repeats = 5
    """Trainings of winner and of baseline, with seeds from 0 on."""
    trials: Trials = Trials()


class ReportJob(Value):
    """Make tables, pictures and report.html of searches again, from their records.

    No run is started. report.html holds all of it and needs no other file.
    """

    name: Annotated[tuple[str, ...], Field(min_length=1), tyro.conf.UseAppendAction]
    """Name of a search; give the option again to show several searches side by side."""
    storage: str = "outputs"
    """Folder or URI under which the searches are."""
    tracking_uri: str | None = None
    """MLflow store that the printed command opens; by default the SQLite file of the storage."""
    open: bool = False
    """Open report.html in a browser."""


class PrepareJob(DataLayout):
    """Write images as Parquet shards, mixed and checked, for training at full speed.

    Images that cannot be used are left out and named in quarantine.csv. Killed, the job goes on
    with --resume, and the files are the same, byte for byte, as those of an undisturbed run.
    """

    data: str = ""
    """Images to read: digits, a folder of classes, Parquet (file, folder or pattern), or
    torchvision:NAME:ROOT."""
    out: str
    """Folder or URI (s3://, gs://) to write to."""
    settings: ShardSettings = ShardSettings()
    workers: NonNegativeCount = 0
    """Shards written at the same time; 0 writes one on each CPU of the cluster."""
    max_bad_fraction: Fraction = 0.05
    """Part of the images that may be unusable; the job ends when there are more."""
    resume: Resume = "never"
    """What to do with shards that are there: `--resume` goes on with those in `out`, `--resume
    auto` goes on or starts."""
    verify: bool = False
    """Compare the files in `out` with their manifest.json and write nothing; exit code 1 where they
    differ."""
    verbose: bool = False
    """Show what Ray logs."""


class ExportJob(Value):
    """Make a folder to deploy of a training: weights with a hash, configuration, a model card.

    The weights are those that the metrics belong to (averaged weights where there are any). Other
    formats are checked against the network; where the answers differ, nothing is written and the
    exit code is 1. A registered model is served by `mlflow models serve`: pictures in, labels and
    probabilities out.
    """

    run: str
    """Folder or URI of the training, STORAGE/NAME of `psvit train`."""
    out: str
    """Folder or URI to write, new or empty."""
    which: Literal["best", "last"] = "best"
    """Checkpoint to export: the best on the hold-out, or the last."""
    onnx: bool = False
    """Write model.onnx too, for any number of images."""
    torch_export: bool = False
    """Write model.pt2 of torch.export too, for any number of images."""
    register_as: Annotated[str, tyro.conf.arg(name="register")] = ""
    """Name in MLflow's model registry that gets a new version."""
    alias: str = ""
    """Alias, such as champion, that the new version takes over."""
    tracking_uri: str | None = None
    """MLflow store that has the run; by default the SQLite file of the run's storage."""


class EvaluateJob(DataLayout):
    """Score an exported model on labelled images: accuracy, per class, mistakes, calibration.

    An image that cannot be read counts as wrong. Data that the model was trained on is split as it
    was then; images that were added since are not scored.
    """

    model: str
    """Folder or URI that `psvit export` wrote."""
    data: str
    """Labelled images: digits, a folder of classes, Parquet (file, folder or pattern), or
    torchvision:NAME:ROOT."""
    out: str
    """Folder or URI to write, new or empty."""
    split: EvaluationSplit | None = None
    """Split to score. By default the test images; where the data has none, the hold-out of the
    model's training, if it is the same data; else the validation images, else all. `all` is for
    data with a single split."""
    batch_size: BatchSize = 64
    """Images computed at once."""
    num_loaders: ProcessesOrZero = 0
    """DataLoader processes; 0 reads images in the main process."""
    decoder: Decoder = "pil"
    """Library that decodes images."""
    num_hardest: NonNegativeCount = 100
    """Images of the highest loss that are listed."""
    threshold: Annotated[Finite, Field(gt=0, lt=1)] | None = None
    """Probability from which on an image counts as the rarer of two classes: precision and recall
    are told for it, by default for 0.5."""
    run: str = ""
    """Folder or URI of the model's training, STORAGE/NAME, under whose run in MLflow the evaluation
    is written too; by default the run that the model names, where `tracking_uri` is given."""
    tracking_uri: str | None = None
    """MLflow store that has the run; by default, with `run`, the SQLite file of its storage."""


class PredictJob(Value):
    """Classify images with an exported model: one row for each image, in the order given.

    A few images are classified in this process, many by Ray actors. An image that cannot be read
    has a row that says why.
    """

    model: str
    """Folder or URI that `psvit export` wrote."""
    data: Annotated[tuple[str, ...], Field(min_length=1)]
    """Images: files, folders (with all below them), Parquet with a column of images, or patterns; -
    reads one path a line from standard input."""
    out: str
    """File to write, new: .csv or .jsonl."""
    image_column: str = ""
    """Column of Parquet that holds the images; by default `image`, or the only one that can."""
    top_k: PositiveCount = 5
    """Classes listed for each image, the likeliest first."""
    batch_size: BatchSize = 64
    """Images computed at once."""
    workers: NonNegativeCount | None = None
    """Ray actors; 0 computes in this process. By default 0 for fewer than 2,000 images, else as
    many as the cluster can hold."""
    resources: WorkerResources = WorkerResources()
    num_loaders: ProcessesOrZero = 0
    """DataLoader processes where images are classified in this process."""
    decoder: Decoder = "pil"
    """Library that decodes images."""
    verbose: bool = False
    """Show what Ray logs."""


class DoctorJob(Value):
    """Check a cluster host by host, or this machine, for a training that is to follow.

    Options are those of the training. Nothing that is written stays. The exit code is 0 where all
    is well and 1 where something is not.
    """

    recipe: str = "digits"
    """Recipe that gives the other options their defaults: a name that `psvit recipes` lists, or the
    path of a YAML file; by default `images` where --data names other images than digits."""
    arch: str | None = None
    """Architecture: a preset, a pattern such as 2-2|2-1-2|2, a spec.json, a best.yaml or an
    exported folder; by default the recipe's base."""
    base: Annotated[ArchSpec | None, tyro.conf.Suppress] = None
    size: DeitSize | None = None
    """Size of the DeiT around which the compact set of the recipe `images` lies; by default
    tiny."""
    train: TrainConfig = TrainConfig()
    workers: PositiveCount | None = None
    """Training workers that share a batch; by default one on each host with room for a worker."""
    resources: WorkerResources = WorkerResources()
    storage: str = "outputs"
    """Folder or URI (s3://, gs://) that the training would write to."""
    tracking_uri: str | None = None
    """MLflow store; by default that of MLFLOW_TRACKING_URI, or a SQLite file under the storage."""
    verbose: bool = False
    """Show what Ray logs."""


class LatencyJob(Value):
    """Measure how long the networks of a search take on a device: a table of their parts.

    The table is tried on networks of the search that it was not made from. Run it on a machine that
    does nothing else.
    """

    recipe: str = "digits"
    """Recipe whose search space is measured: a name that `psvit recipes` lists, or the path of a
    YAML file."""
    search: SearchConfig
    conditions: Conditions = Conditions()
    threads: Processes = 1
    """Threads of torch, where the device is a CPU."""
    unseen: Annotated[int, Field(ge=20, le=10_000)] = 24
    """Networks that the table is tried on; fewer than 20 would say little."""
    rule: bool = True
    """Check the rule that chooses how attention maps are computed, too."""
    out: str
    """JSON file to write, new: a path or URI."""


class RedundancyJob(DataLayout):
    """Measure how alike the attention maps of a network's layers are, and propose a sharing.

    The images are those of the hold-out, or of the validation split where the data has one; test
    images are never read. The proposed pattern is one for `psvit train --arch`.
    """

    model: str
    """Folder or URI that `psvit export` wrote, or a vision transformer of timm: timm:NAME."""
    model_checkpoint: str = ""
    """File with the weights of timm:NAME, instead of those that timm fetches."""
    data: str
    """Images: digits, a folder of classes, Parquet (file, folder or pattern), or
    torchvision:NAME:ROOT."""
    out: str
    """Folder or URI to write, new or empty."""
    threshold: Annotated[Finite, Field(gt=0, le=1)] = 0.9
    """Similarity to the map of its leader from which on a layer borrows that map."""
    followers: NonNegativeCount | None = None
    """Layers that borrow a map, in place of a threshold: those most like their leaders."""
    max_group: PositiveCount | None = None
    """Layers under one map at most; by default any number."""
    num_images: PositiveCount = 256
    """Images drawn from the hold-out; all where there are fewer."""
    seed: Seed = 0
    """Seed for drawing the images."""
    batch_size: BatchSize = 16
    """Images computed at once."""
    num_loaders: ProcessesOrZero = 0
    """DataLoader processes; 0 reads images in the main process."""
    decoder: Decoder = "pil"
    """Library that decodes images."""


class RecipeJob(Value):
    """Write a recipe for your images: all that a search derives from them, to edit and to run.

    Options are those of the search, and are written down.
    """

    recipe: str = "digits"
    """Recipe to begin with: a name that `psvit recipes` lists, or the path of a YAML file; by
    default `images`, for images other than digits."""
    base: Annotated[ArchSpec | None, tyro.conf.Suppress] = None
    size: DeitSize | None = None
    """Size of the DeiT around which the compact set of the recipe `images` lies; by default
    tiny."""
    train: TrainConfig = TrainConfig()
    search: SearchConfig
    oneshot: OneshotConfig = OneshotConfig()
    out: str
    """YAML file to write, new."""


class RecipesJob(Value):
    """List the recipes, or print one of them, to copy and change."""

    name: tyro.conf.Positional[str] = ""
    """Recipe to print; without it, all recipes are listed."""
