"""A model that takes pictures: every kind is the same picture, and nothing else is one."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from psvit_ray.export.model_folder import ExportedModel, load_model_folder
from psvit_ray.export.picture_classifier import PictureClassifier
from tests.helpers.networks import NAMES, exported, facts_of, spec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    folder = tmp_path_factory.mktemp("export") / "model"
    exported(folder, facts_of(spec("2|1", 32, 48, pooling="2d")))
    return load_model_folder(folder)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def kinds(path: Path) -> list[Any]:
    content, image = path.read_bytes(), Image.open(path)
    text = base64.b64encode(content).decode()
    pixels = np.asarray(image)
    return [
        content, bytearray(content), text, f"data:image/png;base64,{text}", str(path), path, image,
        pixels, pixels.tolist(),
    ]  # fmt: skip


def test_a_picture_of_every_kind_has_the_answer_of_the_network(
    model: ExportedModel, picture: Path
) -> None:
    logits = model.model(model.transform(Image.open(picture))[None])[0]
    expected = logits.double().softmax(0).tolist()
    for kind in kinds(picture):
        (answer,) = PictureClassifier(model).predict([kind], logits=True)
        assert answer["label"] == NAMES[int(logits.argmax())]
        assert list(answer["probabilities"]) == list(answer["logits"]) == list(NAMES)
        assert list(answer["probabilities"].values()) == pytest.approx(expected, rel=1e-5)
        assert list(answer["logits"].values()) == pytest.approx(logits.tolist(), rel=1e-5)


def test_a_table_is_answered_with_a_table_row_by_row(model: ExportedModel, picture: Path) -> None:
    """In more than one batch, and a column of its own for logits only if they are wanted."""
    dark = Image.new("RGB", (50, 20))
    images = [picture.read_bytes(), dark] * 40
    index = [f"row{i}" for i in range(80)]
    table = PictureClassifier(model).predict(pd.DataFrame({"image": images}, index=index))
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == index
    assert list(table.columns) == ["label", "probabilities"]
    one, other = PictureClassifier(model).predict(images[:2])
    for row, answer in ((0, one), (79, other)):
        found = table.iloc[row]["probabilities"]
        assert found == pytest.approx(answer["probabilities"], rel=1e-5)


def test_pixels_of_many_and_of_grey_images_are_taken(model: ExportedModel) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 33, 3), dtype=np.uint8)
    answers = PictureClassifier(model).predict(pixels)
    assert answers == PictureClassifier(model).predict(list(pixels))
    grey = pixels[0, :, :, 0]
    (flat,) = PictureClassifier(model).predict([grey])
    (deep,) = PictureClassifier(model).predict([grey[..., None]])
    assert flat == deep


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"<html>", "image 2 cannot be read: not an image"),
        (base64.b64encode(b"<html>").decode(), "image 2 cannot be read: not an image"),
        ("no/such.png", "image 2 cannot be read: there is no file 'no/such.png'"),
        ("/dev/zero", "image 2 cannot be read: there is no file '/dev/zero'"),
        (3.5, r"image 2 must be the bytes of a file, its base64, .*, got float"),
        (None, "got NoneType"),
        (np.zeros((4, 4, 3), np.float32), r"got an array of float32 \(4, 4, 3\)"),
        (np.full((4, 4, 3), 256), r"got an array of int64 \(4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"got an array of uint8 \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got an array of uint8 \(0, 4, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_place(
    model: ExportedModel, picture: Path, given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PictureClassifier(model).predict([picture, given])


def test_a_server_reads_no_file(model: ExportedModel, picture: Path) -> None:
    served = PictureClassifier(model, read_files=False)
    for path in (picture, str(picture)):
        with pytest.raises(ValueError, match=r"image 1 must be .*, got a text that is not base64"):
            served.predict([path])
    served.predict([picture.read_bytes()])


def test_another_column_is_refused(model: ExportedModel, picture: Path) -> None:
    with pytest.raises(ValueError, match=r"in one column 'image', got \['path'\]"):
        PictureClassifier(model).predict(pd.DataFrame({"path": [picture]}))
