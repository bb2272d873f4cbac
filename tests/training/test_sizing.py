"""What is chosen for the images and the machine."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from t2t_vit.data.images import array_images
from t2t_vit.data.sources import Source, open_source
from t2t_vit.options import configure
from t2t_vit.runtime.files import plain
from t2t_vit.training.config import CONFIG_FILE, TrainConfig
from t2t_vit.training.sizing import choose, choose_channels, even_batch_size, mirror_test, model_for, too_few_tokens


def images_of(side, count=40, classes=2):
    """Noise; of class 0 with a bright left half, of class 1 with a bright top, which a mirror does not move."""
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 80, (count, side, side), dtype=np.uint8)
    labels = [row % classes for row in range(count)]
    for array, label in zip(arrays, labels, strict=True):
        (array[:, : side // 2] if label == 0 else array[: side // 2])[:] += 120
    return array_images(arrays, [f"{row}.png" for row in range(count)], labels)


def source_of(images):
    return Source("folder", images, images, ("a", "b"), {})


def small(**settings):
    return configure(TrainConfig, data="folder", **settings)


def test_small_images_get_a_small_network_and_what_was_given_stays():
    config, reasons = choose(small(), source_of(images_of(28)), on_cpu=True)
    assert (config.model, config.img_size, config.batch_size) == ("t2t_vit_7_local", 64, 40)
    assert config.checkpoint == "formulas"
    assert reasons[0] == (
        "chosen: t2t_vit_7_local at 64 x 64 pixels from weights learnt of formulas, as the images are about 28 x 28 "
        "and there is a CPU (--model, --img-size)"
    )
    given = small(model="t2t_vit_10", img_size=48, batch_size=16, hflip=0.1)
    assert choose(given, source_of(images_of(28)), on_cpu=True) == (given, [])
    for scratch, where in [(small(in_chans=4, aa=None, color_jitter=None), True), (small(), False)]:
        source = source_of(images_of(28, count=40 if where else 5001))
        config, reasons = choose(scratch, source, on_cpu=where)
        assert config.checkpoint is None
        assert " pixels, as the images are about 28 x 28" in reasons[0]


@pytest.mark.parametrize(("num_images", "processes", "batch_size"), [(41, 1, 40), (41, 2, 40), (43, 2, 40), (3, 1, 2)])
def test_few_images_are_mixed_in_pairs_where_weights_are_started_from(num_images, processes, batch_size):
    source = source_of(images_of(28, count=num_images))
    for given in ({}, {"model": "t2t_vit_7_local", "checkpoint": "formulas"}):
        config, reasons = choose(small(**given), source, on_cpu=True, processes=processes)
        assert (config.batch_size, config.cutmix) == (batch_size, 1.0)
        assert "CutMix" in str(reasons)


@pytest.mark.parametrize(
    ("num_images", "processes", "given", "batch_size"),
    [
        (40, 1, {"batch_size": 7}, 7),
        (1, 1, {}, 1),
        (3, 2, {}, 2),
        (40, 4, {"batch_size": 12}, 12),
        (41, 1, {"model": "t2t_vit_7_local"}, 41),
        (40, 1, {"cutmix": 0.0}, 40),
        (40, 1, {"start_share": 0.0}, 40),
        (40, 1, {"refit_head": False}, 40),
        (40, 1, {"freeze_backbone": True}, 40),
        (5002, 1, {}, 64),
    ],
)
def test_images_without_pairs_or_a_head_for_whole_ones_are_not_mixed(num_images, processes, given, batch_size):
    source = source_of(images_of(28, count=num_images))
    config, reasons = choose(small(**given), source, on_cpu=True, processes=processes)
    assert (config.batch_size, config.cutmix) == (batch_size, 0.0)
    assert "CutMix" not in str(reasons)


@pytest.mark.parametrize(("given", "cutmix"), [({}, 1.0), ({"cutmix": 0.0}, 0.0), ({"cutmix": 0.5}, 0.5)])
def test_a_run_that_goes_on_mixes_as_it_did(given, cutmix, tmp_path):
    source = source_of(images_of(28))
    begun, _ = choose(small(**given, output=str(tmp_path)), source, on_cpu=True)
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(plain(asdict(begun))))
    goes_on = small(resume=True, output=str(tmp_path))
    assert goes_on.checkpoint == "formulas"
    config, reasons = choose(goes_on, source, on_cpu=True)
    assert config.cutmix == cutmix
    assert reasons == []


def test_where_no_head_can_be_fitted_nothing_is_mixed():
    images = images_of(28, count=10)
    assert choose(small(), source_of(images), on_cpu=True)[0].cutmix == 1.0
    images.labels[:] = range(10)
    assert choose(small(), source_of(images), on_cpu=True)[0].cutmix == 0.0


@pytest.mark.parametrize(
    ("side", "num_images", "on_cpu", "expected"),
    [
        (28, 100, True, ("t2t_vit_7_local", 64)),
        (28, 100, False, ("t2t_vit_7_local", 64)),
        (28, 5001, False, ("t2t_vit_7_32px_local", 32)),
        (64, 1800, False, ("t2t_vit_7_local", 64)),
        (64, 5001, False, ("t2t_vit_7_64px_local", 64)),
        (500, 1800, True, ("t2t_vit_7_local", 128)),
        (500, 1800, False, ("t2t_vit_7_local", 224)),
        (500, 200_000, False, ("t2t_vit_14", 224)),
    ],
)
def test_networks_follow_size_number_and_machine(side, num_images, on_cpu, expected):
    assert model_for(side, num_images, on_cpu=on_cpu) == expected


@pytest.mark.parametrize(("num_images", "size"), [(1, 1), (50, 50), (100, 50), (130, 43), (1800, 64)])
def test_few_images_are_shared_evenly(num_images, size):
    assert even_batch_size(num_images) == size


def test_digits_are_not_mirrored_and_what_a_mirror_hardly_changes_is():
    digits = load_digits()
    arrays = np.round(digits.images * (255 / 16)).astype(np.uint8)[:300]
    images = array_images(arrays, [str(row) for row in range(300)], digits.target[:300].tolist())
    straight, mirrored, count = mirror_test(images)
    assert count == 300
    assert straight > 0.8
    assert mirrored < 0.5
    config, reasons = choose(small(model="t2t_vit_7", batch_size=8), source_of(images), on_cpu=True)
    assert config.hflip == 0.0
    assert reasons[0].startswith("chosen: no mirrored images, as a simple classifier knows")

    rows = np.random.default_rng(0).integers(0, 80, (60, 16, 16), dtype=np.uint8)
    for row, array in enumerate(rows):
        (array[:8] if row % 2 else array[8:])[:] += 120  # above or below
    symmetric = array_images(rows, [str(row) for row in range(60)], [row % 2 for row in range(60)])
    config, reasons = choose(small(model="t2t_vit_7", batch_size=8), source_of(symmetric), on_cpu=True)
    assert (config.hflip, reasons) == (0.5, [])


def test_few_tokens_are_told_with_the_better_preset():
    import t2t_vit

    few = t2t_vit.create_model("t2t_vit_7", img_size=32, num_classes=2)
    assert too_few_tokens("t2t_vit_7", few) == (
        "t2t_vit_7 makes 2 x 2 tokens of such images: --model t2t_vit_7_32px makes 8 x 8, or give --img-size"
    )
    assert too_few_tokens("t2t_vit_7", t2t_vit.create_model("t2t_vit_7", img_size=64)) is None
    assert too_few_tokens("resnet", torch.nn.Linear(2, 2)) is None


@pytest.mark.parametrize(("channels", "expected"), [(4, 4), (3, 3), (1, 3), (200, 3)])
def test_arrays_of_other_channels_are_trained_on_as_they_are(channels, expected, tmp_path):
    """200 are no channels, but a side that stands in the wrong place."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            np.save(tmp_path / name / f"{i}.npy", np.zeros((8, 8, channels), np.uint8))
    source = open_source(str(tmp_path))
    config, reasons = choose_channels(small(), source)
    assert (config.in_chans, len(reasons)) == (expected, expected == 4)
    assert choose_channels(small(in_chans=3), source) == (small(in_chans=3), [])
    np.save(tmp_path / "a" / "0.npy", np.zeros((8, 8), np.uint8))
    assert choose_channels(small(), open_source(str(tmp_path))) == (small(), [])  # not the same in all images
