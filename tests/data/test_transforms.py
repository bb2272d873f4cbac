"""Transforms: timm's images, to the last bit or to the rounding of the resize, in one channel or three."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing

from t2t_vit.data.images import array_images
from t2t_vit.data.loading import Draw, DrawnImages
from t2t_vit.data.transforms import Normalize, eval_transform, train_transform
from t2t_vit.errors import UserError

CONFIG = {
    "input_size": (3, 16, 16),
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
    "crop_pct": 1.0,
    "interpolation": "bicubic",
}
# Together these take numbers from Python's, NumPy's and torch's generators.
AUGMENTATION = {"hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"}
IMAGES = array_images(
    np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8), [f"{i}.png" for i in range(5)], [0] * 5
)


def test_train_transform_takes_timms_settings():
    crop, transform = train_transform(CONFIG, hflip=0.0, scale=(0.7, 0.9), color_jitter=None)
    assert len(transform.transforms) == 1  # to a tensor: nothing flips
    assert (crop.scale, crop.interpolation) == ((0.7, 0.9), ["bilinear", "bicubic"])
    crop, plain = train_transform(CONFIG, no_aug=True)
    assert crop is None
    assert all(torch.equal(plain(IMAGES.load(0)), plain(IMAGES.load(0))) for _ in range(3))


def test_training_images_are_timms_up_to_the_rounding_of_the_resize():
    """The same random numbers, through timm's own transform; with colours left alone, which would magnify a level."""
    crop, transform = train_transform(CONFIG, color_jitter=None)
    timms = create_transform(**{**CONFIG, "interpolation": "random"}, is_training=True, color_jitter=None)
    normalize = Normalize(CONFIG, torch.device("cpu"))
    for position in range(20):
        expected = DrawnImages(IMAGES, timms)[Draw(0, position, 0)].image
        found = normalize(DrawnImages(IMAGES, transform, crop=crop)[Draw(0, position, 0)].image[None])[0]
        assert (found - expected).abs().max() * CONFIG["std"][0] * 255 < 2.01


def test_evaluation_images_are_timms_to_the_last_bit():
    transform, timms = eval_transform(CONFIG), create_transform(**CONFIG)
    normalize = Normalize(CONFIG, torch.device("cpu"))
    for index in range(5):
        image = IMAGES.load(index)
        assert torch.equal(normalize(transform(image)[None])[0], timms(image))


def test_erasing_is_timms():
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    plain, erasing = (Normalize(CONFIG, torch.device("cpu"), re_prob=prob) for prob in (0.0, 0.5))
    random.seed(1), torch.manual_seed(1)
    expected = RandomErasing(0.5, mode="pixel", device="cpu")(plain(images))
    random.seed(1), torch.manual_seed(1)
    assert torch.equal(erasing(images), expected)
    assert 0 < (expected != plain(images)).any(dim=(1, 2, 3)).sum() < 8


def test_timms_refusal_is_the_users_mistake():
    with pytest.raises(UserError, match=r"timm refuses these augmentation settings: .*'foo'.* Unknown AA policy foo"):
        train_transform(CONFIG, auto_augment="foo")


def test_one_channel():
    grey = {**CONFIG, "input_size": (1, 16, 16)}
    assert eval_transform(grey)(IMAGES.load(0)).shape == (1, 16, 16)
    crop, transform = train_transform(grey, **AUGMENTATION)
    images = DrawnImages(IMAGES, transform, crop=crop)
    samples = images.__getitems__([Draw(0, position, 0) for position in range(40)])  # enough for each of its operations
    assert all(sample.image.shape == (1, 16, 16) for sample in samples)


def test_one_channel_is_normalised_by_the_mean_statistics():
    config = {**CONFIG, "input_size": (1, 16, 16), "mean": (0.1, 0.2, 0.6), "std": (0.1, 0.3, 0.5)}
    white = eval_transform(config)(Image.new("RGB", (16, 16), (255, 255, 255)))
    normalized = Normalize(config, torch.device("cpu"))(white[None])
    torch.testing.assert_close(normalized, torch.full((1, 1, 16, 16), (1 - 0.3) / 0.3))


def test_other_channel_counts_are_refused():
    with pytest.raises(UserError, match="Images have 3 channels, or 1 in grey, got in_chans=4"):
        eval_transform({**CONFIG, "input_size": (4, 16, 16)})
