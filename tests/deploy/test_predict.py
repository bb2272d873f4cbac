"""Labels of images: from Python, and as `t2t-vit predict` prints them."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from t2t_vit.cli import main
from t2t_vit.data import loading
from t2t_vit.data.sources import UnreadableImage
from t2t_vit.deploy.predict import find_images, load_predictor
from t2t_vit.errors import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "token_dim": 16, "img_size": 32}
NAMES = ["ant", "bee", "cat"]


def write_checkpoint(path, *, num_classes=3, **contents):
    torch.manual_seed(0)
    model_args = {**SMALL, "num_classes": num_classes}
    model = timm.create_model("t2t_vit_7_32px", **model_args)
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, where all classes are nearly alike
            parameter.add_(torch.randn_like(parameter) * 0.3)
    head = {"format": "t2t_vit", "version": 1, "model": "t2t_vit_7_32px", "model_args": model_args}
    torch.save({**head, "state_dict": model.state_dict(), **contents}, path)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    data_config = {
        "input_size": [3, 32, 32], "mean": list(MEAN), "std": list(STD), "crop_pct": 1.0, "interpolation": "bicubic",
    }  # fmt: skip
    write_checkpoint(path, class_names=NAMES, data_config=data_config)
    return path


@pytest.fixture
def images(tmp_path):
    """A folder of three images in two folders, and what is no image."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, array in zip(("b.png", "a.PNG", "more/c.bmp"), pixels, strict=True):
        Image.fromarray(array).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_text("no image either")
    return tmp_path / "photos"


def by_hand(checkpoint, pixels):
    """Probabilities by class for pixels that need no resizing."""
    contents = torch.load(checkpoint, weights_only=True)
    model = timm.create_model(contents["model"], **contents["model_args"]).eval()
    model.load_state_dict(contents["state_dict"])
    x = (torch.tensor(pixels).permute(2, 0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    with torch.no_grad():
        return dict(zip(contents["class_names"], model(x.unsqueeze(0)).softmax(-1)[0].tolist(), strict=True))


def test_probabilities_are_the_networks(checkpoint, images):
    labels = load_predictor(checkpoint, device="cpu")(images / "b.png")
    with Image.open(images / "b.png") as image:
        expected = by_hand(checkpoint, np.array(image))
    assert dict(labels) == pytest.approx(expected, abs=1e-5)
    assert [label for label, _ in labels] == sorted(expected, key=lambda label: -expected[label])


def test_images_come_open_or_as_files_and_in_any_mode(checkpoint, images):
    predictor = load_predictor(checkpoint, device="cpu")
    with Image.open(images / "b.png") as image:
        assert predictor(image) == predictor(str(images / "b.png")) == predictor(image.convert("RGBA"))
        grey = image.convert("L")
    assert predictor(grey) == predictor(grey.convert("RGB"))
    assert predictor(grey, top_k=2) == predictor(grey)[:2]
    with pytest.raises(UnreadableImage, match=r"notes\.txt is not a readable image"):
        predictor(images / "notes.txt")


def test_batches_give_what_single_images_give(checkpoint, images, monkeypatch):
    monkeypatch.setattr(loading, "default_workers", lambda: 0)
    predictor = load_predictor(checkpoint, device="cpu")
    good = [images / "b.png", images / "more" / "c.bmp", images / "a.PNG"]
    paths = [good[0], images / "notes.txt", images / ".hidden.png", good[1], good[2]]
    for batch_size in (2, 5):
        found = list(predictor.label_files(paths, batch_size=batch_size))
        assert [prediction.image for prediction in found] == [str(path) for path in paths]
        assert [prediction.error is None for prediction in found] == [True, False, False, True, True]
        assert all(str(paths[place]) in found[place].error for place in (1, 2))
        for path, prediction in zip(good, (found[0], found[3], found[4]), strict=True):
            assert dict(prediction.labels) == pytest.approx(dict(predictor(path)), abs=1e-6)


@pytest.mark.parametrize(
    ("class_names", "num_classes", "label"),
    [
        (None, 1000, "tench, Tinca tinca"),
        (None, 4, "3"),
        ([f"shop {number}" for number in range(1000)], 1000, "shop 999"),  # a thousand classes need not be ImageNet's
    ],
)
def test_names_of_classes(tmp_path, class_names, num_classes, label):
    write_checkpoint(tmp_path / "weights.pt", num_classes=num_classes, class_names=class_names)
    labels = load_predictor(tmp_path / "weights.pt", device="cpu")(Image.new("RGB", (50, 40)))
    assert len(labels) == num_classes
    assert label in dict(labels)


def test_printed_for_people(checkpoint, images, capsys):
    assert main(["predict", str(images), "--checkpoint", str(checkpoint), "--top-k", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[::3] == [str(images / name) for name in ("a.PNG", "b.png", "more/c.bmp")]
    (best, probability), *_ = load_predictor(checkpoint, device="cpu")(images / "a.PNG")
    assert lines[1] == f"{probability:8.1%}  {best}"
    assert "t2t_vit checkpoint" in printed.err  # the load report, out of the way of the labels


def test_printed_as_json(checkpoint, images, capsys):
    names = [str(images / "b.png"), str(images / "notes.txt"), str(images / "a.PNG")]
    assert main(["predict", *names, "--checkpoint", str(checkpoint), "--json", "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [entry["image"] for entry in found] == names
    assert [sorted(entry) for entry in found] == [["image", "labels"], ["error", "image"], ["image", "labels"]]
    assert [label["label"] for label in found[0]["labels"]] == [
        label for label, _ in load_predictor(checkpoint, device="cpu")(names[0])
    ]
    assert sum(label["probability"] for label in found[0]["labels"]) == pytest.approx(1)


def test_unreadable_images_are_named_after_the_others_were_predicted(checkpoint, images, capsys):
    (images / "cut.png").write_bytes((images / "b.png").read_bytes()[:300])
    assert main(["predict", str(images), "--checkpoint", str(checkpoint), "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert sum(line.startswith(str(images)) for line in printed.out.splitlines()) == 3
    *_, error = printed.err.splitlines()
    assert error.startswith(f"t2t-vit: error: 1 of 4 images could not be read: {images / 'cut.png'} is not a readable")


def test_a_path_that_does_not_exist_is_told_first(images):
    with pytest.raises(UserError, match=r"these do not exist: .*/x\.png, .*/y\.png\."):
        find_images([str(images / "x.png"), str(images), str(images / "y.png")])


def test_a_folder_without_images(tmp_path):
    with pytest.raises(UserError, match=r"The folder .* holds no image \(\.jpg"):
        find_images([str(tmp_path)])


def test_a_checkpoint_without_a_head(tmp_path):
    write_checkpoint(tmp_path / "features.pt", num_classes=0)
    with pytest.raises(UserError, match=r"features\.pt has no head, so that it cannot name classes"):
        load_predictor(tmp_path / "features.pt", device="cpu")


def test_numbers_that_make_no_sense(checkpoint, images, capsys):
    assert main(["predict", str(images), "--checkpoint", str(checkpoint), "--top-k", "0"]) == 2
    assert capsys.readouterr().err == "t2t-vit: error: --top-k must be at least 1, got 0.\n"
