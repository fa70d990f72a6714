"""A folder of photos without a recipe: what is derived from the images, and what is refused."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from PIL import Image

from psvit_ray.arch import compact_set
from psvit_ray.arch.compact_set import Pictures
from psvit_ray.commands import command_line
from psvit_ray.commands.fitting import fitted
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.data.splits.split_file import SPLITS_FILE, DataChanged
from psvit_ray.model import PSViT
from psvit_ray.model.pretrained import load_pretrained
from psvit_ray.runtime.session.session import check_resume
from psvit_ray.search.description import read_description, write_description
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import TrainConfig
from tests.helpers.command_line import Refused, Run, parse
from tests.helpers.photographs import photographs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photographs(tmp_path / "photos", 60, broken=3)


def fit(line: str) -> Any:
    job = parse(line)
    return fitted(job, load_data(job.train))[0]


def test_all_of_a_search_is_derived_from_the_photos(photos: Path) -> None:
    job = fit(f"tune_psvit --data {photos}")
    pictures = Pictures(
        img_size=64, in_chans=3, num_classes=5
    )  # shorter sides: 64 to 90, mostly 72
    assert job.recipe == "images"
    assert job.search.space == compact_set.compact_set("tiny", pictures)
    assert job.search.limits == compact_set.limits("tiny", pictures)
    assert (len(job.train.mean), len(job.train.std), job.train.img_size) == (3, 3, 0)
    assert job.train.test_fraction == 0.1
    assert len(load_data(job.train).test or ()) > 0


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_size_and_img_size_say_around_which_deit_and_at_how_many_pixels(
    size: Any, photos: Path
) -> None:
    job = fit(f"tune_psvit --data {photos} --size {size} --img-size 32")
    pictures = Pictures(img_size=32, in_chans=3, num_classes=5)
    assert job.search.space == compact_set.compact_set(size, pictures)
    assert job.search.limits == compact_set.limits(size, pictures)
    assert job.train.img_size == 0


def test_limits_that_are_given_stay(photos: Path) -> None:
    search = fit(f"tune_psvit --data {photos} --max-gmacs 0.5 --max-params-m 3").search
    assert (search.max_gmacs, search.max_params_m) == (0.5, 3)


def test_grey_photos_stay_grey(tmp_path: Path) -> None:
    job = fit(f"tune_psvit --data {photographs(tmp_path / 'photos', 40, grey=True)}")
    assert (job.search.space.in_chans, len(job.train.mean)) == (1, 1)


@pytest.mark.parametrize(
    ("sides", "img_size"),
    [((640, 480), 224), ((500, 100), 96), ((64, 64), 64), ((63, 70), 60), ((28, 28), 28)],
)
def test_the_size_is_a_multiple_of_16_or_below_64_of_4_that_the_pictures_have(
    sides: tuple[int, int], img_size: int, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            file = tmp_path / "photos" / name / f"{number}.png"
            Image.new("RGB", sides).save(file)
    job = fit(f"tune_psvit --data {tmp_path / 'photos'}")
    assert job.search.space.img_size == img_size


def test_weights_to_start_from_keep_imagenets_mean_and_deits_first_width(photos: Path) -> None:
    job = fit(f"tune_psvit --data {photos} --init timm:deit_tiny_patch16_224")
    assert (job.train.mean, job.train.std) == ((), ())
    assert job.search.space.stages[0].embed_dim == (192,)
    assert {stage.mlp_ratio for stage in job.search.space.stages} == {(4,)}


@pytest.mark.parametrize(("img_size", "in_chans"), [(64, 1), (224, 3)])
def test_every_spec_of_a_search_from_weights_takes_some_of_deits(
    img_size: int, in_chans: int
) -> None:
    weights = timm.create_model("deit_tiny_patch16_224").state_dict()
    pictures = Pictures(img_size, in_chans, num_classes=5)
    space = compact_set.compact_set("tiny", pictures, pretrained=True)
    rng = random.Random(0)
    for _ in range(8):
        spec = space.sample(rng, compact_set.limits("tiny", pictures))
        loaded = load_pretrained(PSViT(spec), weights)
        assert not any(name.startswith("stages.0.blocks") for name in loaded.other_shape)


def test_a_resume_names_the_images_that_changed_and_not_what_was_derived_from_them(
    photos: Path, tmp_path: Path
) -> None:
    folder = Folder.at(str(tmp_path / "a"))
    source = load_data(TrainConfig(data=str(photos)))
    train = {"data": str(photos), "mean": [0.1, 0.2, 0.3]}
    write_description(folder, {"train": train}, source.digest)
    assert source.images
    folder.write(SPLITS_FILE, source.images.to_bytes())
    Image.new("RGB", (90, 90)).save(photos / "stars" / "new.png")
    now = load_data(TrainConfig(data=str(photos)))
    described = read_description(folder)
    changed = {"train": train | {"mean": [0.2, 0.2, 0.3]}}
    with pytest.raises(DataChanged, match=r"1 image added, such as .stars/new\.png."):
        check_resume("must", folder, "a", described, changed, now)
    with pytest.raises(ValueError, match=r"must not change what .a. is: train\.mean: "):
        check_resume("must", folder, "a", described, changed, source)


def test_without_an_architecture_a_psvit_of_the_set_is_trained(photos: Path) -> None:
    job = fit(f"train_psvit --data {photos}")
    assert job.base == compact_set.usual_psvit("tiny", Pictures(64, 3, 5))
    pattern = fit(f"train_psvit --data {photos} --arch '2|2-1' --size small --img-size 32")
    assert command_line.read_arch("2|2-1", pattern.base).stages[0].embed_dim == 384


def test_a_recipe_of_ones_own_leaves_the_images_out_or_states_them(
    photos: Path, tmp_path: Path, refused: Refused
) -> None:
    stage = {"depth": [1, 2], "embed_dim": [32], "head_dim": [16], "mlp_ratio": [2]}
    space: dict[str, Any] = {"patch_size": [12], "pooling": ["2d"], "stages": [stage, stage]}
    path = tmp_path / "my.yaml"

    def write(**images: int) -> None:
        content = {"train": {"batch_size": 8}, "search": {"space": space | images}}
        path.write_text(yaml.safe_dump(content))

    write()
    job = fit(f"tune_psvit --recipe {path} --data {photos}")
    assert (job.search.space.img_size, job.search.space.num_classes) == (72, 5)  # 6 patches of 12
    write(img_size=36, in_chans=1)
    job = fit(f"tune_psvit --recipe {path} --data {photos}")
    assert (job.search.space.img_size, job.search.space.in_chans) == (36, 1)
    assert job.train.mean == ()
    write(num_classes=4)
    assert refused(f"tune_psvit --recipe {path} --data {photos}") == (
        f"num_classes must be 5, as in data '{photos}', got 4 in search.space of recipe '{path}'; "
        "correct it there, or leave it out"
    )


def test_a_recipe_that_is_written_down_gives_the_same_search(
    photos: Path, tmp_path: Path, run: Run
) -> None:
    said = run(f"recipe --data {photos} --img-size 32 --num-trials 5 --batch-size 8 --out my.yaml")
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith("written: my.yaml\npsvit tune --recipe my.yaml\n")
    job, written = (
        fit(f"tune_psvit --data {photos} --img-size 32 --num-trials 5 --batch-size 8"),
        "my.yaml",
    )
    again = fit(f"tune_psvit --recipe {written}")
    assert (again.search, again.train, again.oneshot) == (job.search, job.train, job.oneshot)
    assert (
        fit(f"train_psvit --recipe {written}").base
        == fit(f"train_psvit --data {photos} --img-size 32").base
    )
    text = (tmp_path / "my.yaml").read_text()
    assert re.search(r"^# derived from \d+ pictures looked at: in_chans 3, mean", text, re.M)
    assert "  img_size: 32  # images are resized to this side, in pixels\n" in text


def test_few_images_are_told_and_a_start_from_weights_is_named(photos: Path, run: Run) -> None:
    said = run(f"recipe --data {photos} --size small --batch-size 8 --out my.yaml").out
    (line,) = [line for line in said.splitlines() if "training images: " in line]
    assert "from scratch a network learns little from fewer than 10,000" in line
    assert "--init timm:deit_small_patch16_224" in line
    said = run(
        f"recipe --data {photos} --init timm:deit_tiny_patch16_224 --batch-size 8 --out b.yaml"
    ).out
    assert "from scratch" not in said


WRONG = [
    ("images only", "data must be a folder of class folders, got images only in "),
    ("one class", "data must have at least 2 classes, got 'a'"),
    (
        "two images a class",
        "data must have at least 3 images of a class, to train on, to hold out ",
    ),
    ("small pictures", "has pictures that are too small for any patches: the median of their "),
    ("few images", "batch_size must be at most "),
]


@pytest.mark.parametrize(("what", "message"), WRONG)
@pytest.mark.parametrize("command", ["tune_psvit", "train_psvit"])
def test_a_folder_that_cannot_be_searched_gets_one_line_with_the_way_out(
    what: str, message: str, command: str, tmp_path: Path, refused: Refused
) -> None:
    classes = {"images only": ("",), "one class": ("a",)}.get(what, ("a", "b"))
    side = 6 if what == "small pictures" else 32
    for name in classes:
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        for number in range(
            2 if what == "two images a class" else 80 if what == "small pictures" else 8
        ):
            file = tmp_path / "photos" / name / f"{number}.png"
            Image.new("RGB", (side, side)).save(file)
    assert message in refused(f"{command} --data photos")


def test_small_pictures_can_be_enlarged(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(80):
            Image.new("RGB", (6, 6)).save(tmp_path / "photos" / name / f"{number}.png")
    job = fit(f"tune_psvit --data {tmp_path / 'photos'} --img-size 32")
    assert job.search.space.img_size == 32


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "tune_psvit --recipe digits --data {photos}",
            "recipe 'digits' is for data 'digits' alone, got '{photos}'; use --recipe images, "
            "which is for images of any kind",
        ),
        (
            "tune_psvit --size small",
            "size must be left out with recipe 'digits', which says itself what is searched; "
            "--recipe images takes it",
        ),
        (
            "train_psvit --data {photos} --arch psvit_2d_tiny --size small",
            "size must be left out with an arch that has widths, got 'psvit_2d_tiny'",
        ),
        (
            "tune_psvit --data {photos} --img-size 31",
            "img_size must be a multiple of a patch that leaves a grid of 7 x 7 to 28 x 28, got "
            "31; nearest is 30 or 32",
        ),
        (
            "proxy_study --recipe images --data {photos}",
            "recipe 'images' leaves its space to the data; psvit recipe --data DIR --out my.yaml "
            "writes a recipe that has one",
        ),
        (
            "recipe --data {photos} --out my.txt",
            "out must end in .yaml or .yml, by which a recipe is known, got 'my.txt'",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    line: str, message: str, photos: Path, refused: Refused
) -> None:
    assert refused(line.format(photos=photos)) == message.format(photos=photos)
