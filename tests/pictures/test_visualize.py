"""`t2t-vit visualize`: what it writes, and what it says of what it cannot."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_vit.cli import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of noise, of different shapes."""
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("b c.png", (32, 32))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def visualize(*words: object) -> int:
    return main(["visualize", *map(str, words), "--device", "cpu"])


def test_pictures_numbers_and_a_page(small_checkpoint, images, tmp_path, capsys):
    output = tmp_path / "out"
    assert visualize(images / "a.png", images / "b c.png", "--checkpoint", small_checkpoint, "--output", output) == 0
    assert capsys.readouterr().out.startswith(f"Page:     {output / 'index.html'}\n")
    parts = ["attention", "features", "norms", "overview", "relevance", "tokens"]
    stems = ["01-a.png-t2t_vit_7_32px", "02-b_c.png-t2t_vit_7_32px"]
    pictures = [f"{stem}-{part}.png" for stem in stems for part in parts]
    assert sorted(path.name for path in output.glob("*.png")) == [
        *pictures,
        "all-t2t_vit_7_32px-colours.png",
        "layers.png",
    ]
    for path in output.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100
            pixels = np.asarray(picture.convert("L"))
            assert pixels[20:60, 20:60].std() > 2 or path.name == "layers.png", path  # in the first tile

    with np.load(output / f"{stems[0]}.npz") as numbers:
        assert {name.split("/")[0] for name in numbers} == {"relevance", "attention", "energy", "norms"}
        assert numbers["relevance/legrad"].shape == (32, 32)
        assert numbers["attention/blocks.0.attn"].shape == (2, 64)
        assert numbers["energy/tokens_to_token.project"].sum() == pytest.approx(1, abs=1e-4)
    with (output / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [
        "tokens_to_token.attention1", "tokens_to_token.attention2", "tokens_to_token", "blocks.0",
    ]  # fmt: skip
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "b c.png in t2t_vit_7_32px" in page
    assert page.count("<img ") > 100
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # nothing from elsewhere
    assert "<script" not in page


def test_networks_side_by_side_with_faithfulness(small_checkpoint, images, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["--checkpoint", small_checkpoint, "--model", "resnet18", "--no-pretrained", "--img-size", "32"]
    assert (
        visualize(images / "a.png", *words, "--methods", "gradcam", "rollout", "--faithfulness", "--output", output)
        == 0
    )
    printed = capsys.readouterr().out
    assert "near 0 is good" in printed
    with (output / "faithfulness.csv").open(newline="") as file:
        rows = [(row["model"], row["method"]) for row in csv.DictReader(file)]
    ours, theirs = "t2t_vit_7_32px", "resnet18"
    assert rows == [(ours, "gradcam"), (ours, "rollout"), (ours, "random"), (theirs, "gradcam"), (theirs, "random")]
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "ResNet has no attention that can be captured" in page  # which method is missing, and why
    assert "Are the relevance maps right?" in page


def test_chosen_layers_pixel_and_class(small_checkpoint, images, tmp_path):
    output = tmp_path / "out"
    chosen = [
        "--layers",
        "blocks.0",
        "--channels",
        "3",
        "--pixel",
        "3",
        "30",
        "--label",
        "bee",
        "--img-size",
        "48",
        "64",
    ]
    assert visualize(images / "a.png", "--checkpoint", small_checkpoint, *chosen, "--output", output) == 0
    page = (output / "index.html").read_text(encoding="utf-8")
    assert "Relevance for bee" in page
    assert page.count("<figcaption>blocks.0 · ") == 3 + 2 + 1  # channels, heads, norms
    assert "64 x 48 pixels" in page


def test_many_images_are_chosen_evenly(small_checkpoint, tmp_path, capsys):
    for number in range(5):
        Image.new("RGB", (32, 32), (50 * number, 99, 0)).save(tmp_path / f"{number}.png")
    words = [tmp_path, "--checkpoint", small_checkpoint, "--max-images", "2", "--methods", "rollout"]
    assert visualize(*words, "--output", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("2 of 5 images are shown; --max-images shows more.\n")
    assert [path.name[:4] for path in sorted((tmp_path / "out").glob("*.npz"))] == ["01-0", "02-4"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--layers", "blocks.9"],
            r"Unknown layer 'blocks\.9'\. Did you mean blocks\.0.*Usual ones: tokens_to_token\.attention1",
        ),
        (["--label", "dog"], r"Unknown class 'dog'\. .*ant, bee, cat"),
        (["--pixel", "32", "5"], r"The pixel 32,5 lies outside the image, which has 32 x 32 pixels"),
        (["--methods", "gradient"], r"--methods"),
        (["--channels", "0"], r"--channels must be at least 1, got 0"),
    ],
)
def test_what_does_not_exist_is_told_in_a_line(words, told, small_checkpoint, images, tmp_path, capsys):
    assert visualize(images / "a.png", "--checkpoint", small_checkpoint, *words, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(told, error)
    assert not (tmp_path / "out").exists()


def test_networks_of_the_same_name_are_told_apart(small_checkpoint, images, tmp_path):
    output = tmp_path / "out"
    words = ["--checkpoint", small_checkpoint, small_checkpoint, "--model", "t2t_vit_7_32px", "--no-pretrained"]
    assert visualize(images / "a.png", *words, "--methods", "rollout", "--output", output) == 0
    with (output / "layers.csv").open(newline="") as file:
        names = dict.fromkeys(row["model"] for row in csv.DictReader(file))
    assert list(names) == ["t2t_vit_7_32px", "t2t_vit_7_32px-2", "t2t_vit_7_32px-3"]
    assert len([*output.glob("*-overview.png")]) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["t2t_vit_7", "--layers", "tokens_to_token.project"],
            r"tokens_to_token\.project of T2TViT is part of another layer",
        ),
        (["vit_small_patch14_dinov2"], r"vit_small_patch14_dinov2 has no classifier, whose answer could be explained"),
        (
            ["xcit_nano_12_p16_224", "--layers", "blocks.0"],
            r"patch_embed returns a tuple and no map: choose another layer",
        ),
        (
            ["inception_v3"],
            r"inception_v3 at 64 x 64 pixels is built otherwise than visualize knows, or cannot take this size",
        ),
        (["mixer_s16_224", "--layers", "blocks.0.mlp_tokens"], r"returns"),
    ],
    ids=["part", "no classifier", "tuples", "size", "no map"],
)
def test_networks_and_layers_that_do_not_fit_are_told_in_a_line(words, told, images, tmp_path, capsys):
    model, *others = words
    size = ["--img-size", "56" if "dinov2" in model else "64"]
    words = ["--model", model, "--no-pretrained", *size, *others, "--methods", "gradcam"]
    assert visualize(images / "a.png", *words, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.search(told, error)
    assert error.count("\n") == 1


def test_attention_too_large_leaves_the_other_pictures(images, tmp_path, monkeypatch):
    monkeypatch.setattr("t2t_vit.insight.attention.MAX_WEIGHTS", 1000)
    words = ["--model", "vit_tiny_patch16_224", "--no-pretrained", "--img-size", "64"]
    assert visualize(images / "a.png", *words, "--output", tmp_path / "out") == 0
    assert "would take" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert [*(tmp_path / "out").glob("*-features.png")]


def test_windows_are_no_attention_to_the_image(images, tmp_path):
    words = ["--model", "swin_tiny_patch4_window7_224", "--no-pretrained", "--img-size", "56", "--methods", "gradcam"]
    assert visualize(images / "a.png", *words, "--output", tmp_path / "out") == 0
    assert "SwinTransformer attends within windows" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert not [*(tmp_path / "out").glob("*-attention.png")]


def test_cells_are_drawn_where_their_tokens_are(tmp_path):
    import torch

    from t2t_vit.insight.geometry import Grid
    from t2t_vit.models.splits import PAPER_SPLITS
    from t2t_vit.pictures.maps import channel_tile, heat_tile

    grid, values = Grid.after(PAPER_SPLITS, (224, 224)), torch.zeros(14, 14)
    values[7, 7] = 1  # its centre is pixel 7 * 16 + 1 = 113
    for tile in (channel_tile(values, grid, (224, 224)), heat_tile(values, grid, (224, 224), low=0, high=1)):
        rows, columns = (tile[..., 0] > 100).nonzero()
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (105, 120, 105, 120)


def test_methods_that_a_network_has_not_are_told(images, tmp_path, capsys):
    words = ["--model", "resnet18", "--no-pretrained", "--img-size", "32", "--methods", "legrad"]
    assert visualize(images / "a.png", *words, "--output", tmp_path / "out") == 2
    assert "ResNet has no blocks with attention, from whose outputs the head could read." in capsys.readouterr().err


def test_no_network_and_no_weights_are_told(images, tmp_path, capsys, monkeypatch):
    assert visualize(images / "a.png") == 2
    assert "Missing --checkpoint PATH or --model NAME: the networks to look into." in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries five times
    assert visualize(images / "a.png", "--model", "resnet18", "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.match(r"t2t-vit: error: resnet18 could not be made: .*--no-pretrained for random weights\.\n", error)


def test_unreadable_images_are_told_after_the_others(small_checkpoint, images, tmp_path, capsys):
    (images / "broken.png").write_bytes(b"no image")
    output = tmp_path / "out"
    words = [images / "broken.png", images / "a.png", "--checkpoint", small_checkpoint, "--methods", "rollout"]
    assert visualize(*words, "--output", output) == 2
    assert re.search(r"1 of 2 images could not be read: .*broken\.png is not a readable image", capsys.readouterr().err)
    assert (output / "01-a.png-t2t_vit_7_32px-relevance.png").exists()
    assert visualize(images / "broken.png", "--checkpoint", small_checkpoint, "--output", tmp_path / "none") == 2
    assert "1 of 1 images could not be read" in capsys.readouterr().err


def test_an_image_size_too_small_for_the_patches(images, tmp_path, capsys):
    words = ["--model", "t2t_vit_7_no_t2t", "--no-pretrained", "--img-size", "15"]
    assert visualize(images / "a.png", *words, "--output", tmp_path / "out") == 2
    assert "too small for the splits ((16, 16, 0),): the smallest size is 16 x 16." in capsys.readouterr().err


@pytest.mark.parametrize("in_chans", [1, 5])
def test_images_of_other_channels(in_chans, write_small_checkpoint, tmp_path):
    pixels = np.random.default_rng(0).random((32, 32, in_chans), np.float32)
    np.save(tmp_path / "image.npy", pixels if in_chans > 1 else pixels[..., 0])
    known = {"input_size": [in_chans, 32, 32], "mean": [0.5] * in_chans, "std": [0.3] * in_chans}
    path = write_small_checkpoint(tmp_path / "best.pt", in_chans=in_chans, data_config=known)
    words = ["--checkpoint", path, "--methods", "rollout", "gradcam"]
    assert visualize(tmp_path / "image.npy", *words, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "index.html").exists()


def test_training_imports_nothing_of_this():
    import subprocess

    program = (
        "import sys, t2t_vit.training.train; "
        "print([name for name in sys.modules if 't2t_vit.insight' in name or 'visualize' in name or 'captum' in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
