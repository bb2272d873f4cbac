"""Transforms: timm's images, to the last bit or to the rounding of the resize, in one channel or three."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing

from t2t_vit.data.cache import cached
from t2t_vit.data.images import array_images, crop_pixels, file_images
from t2t_vit.data.loading import Draw, DrawnImages, EvaluationBatches, make_loader
from t2t_vit.data.pixels import PixelFormat
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


def test_other_channels_need_statistics_of_their_own():
    with pytest.raises(UserError, match="Expected mean and std of 4 channels, got 3 in the data configuration"):
        eval_transform({**CONFIG, "input_size": (4, 16, 16)})


# Arrays of channels

FIVE = {**CONFIG, "input_size": (5, 16, 16), "mean": (1, 2, 3, 4, 5), "std": (1, 2, 1, 2, 1), "background": "white"}
NO_COLOUR = {"color_jitter": None, "auto_augment": None}
PIXELS = np.random.default_rng(0).normal(size=(20, 24, 5)).astype(np.float32)


def test_channels_are_cropped_as_colours_are():
    """The same random numbers give the same boxes, flips and interpolation, channel by channel."""
    crop, transform = train_transform(FIVE, **NO_COLOUR)
    colour_crop, _ = train_transform(CONFIG, **NO_COLOUR)
    flipped = []
    for seed in range(10):
        random.seed(seed), torch.manual_seed(seed)
        found = transform(crop_pixels([PIXELS], crop))
        assert (found.shape, found.dtype) == ((5, 16, 16), torch.float32)
        random.seed(seed), torch.manual_seed(seed)
        box = colour_crop.choose(24, 20)
        part = torch.from_numpy(PIXELS[box.top : box.bottom, box.left : box.right]).permute(2, 0, 1)[None]
        mode = random.choice(colour_crop.interpolation)
        expected = torch.nn.functional.interpolate(part, (16, 16), mode=mode, antialias=True)[0]
        flipped.append(torch.allclose(found, expected.flip(-1), atol=1e-5))
        assert flipped[-1] or torch.allclose(found, expected, atol=1e-5)
    assert 0 < sum(flipped) < 10


def test_channels_are_evaluated_and_normalised():
    batch = eval_transform(FIVE)(crop_pixels([PIXELS], None))[None]
    assert batch.shape == (1, 5, 16, 16)
    before = batch.clone()
    found = Normalize(FIVE, torch.device("cpu"))(batch)
    expected = (before - torch.tensor(FIVE["mean"])[:, None, None]) / torch.tensor(FIVE["std"])[:, None, None]
    assert torch.allclose(found, expected)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("crop_padding", [None, 0.125])
def test_batches_of_channels(crop_padding, tmp_path):
    np.save(tmp_path / "0.npy", np.ones((20, 24, 5), np.uint8))
    names = [str(tmp_path / "0.npy"), "gone.npy"]
    images = file_images(lambda index: Path(names[index]).read_bytes(), names, [0, 1]).in_format(PixelFormat(5))
    crop, transform = train_transform(FIVE, crop_padding=crop_padding, vflip=0.5, **NO_COLOUR)
    for set_of_images in (images, cached(images, crop)):
        dataset = DrawnImages(set_of_images, transform, crop=crop)
        (batch,) = make_loader(dataset, EvaluationBatches(2, batch_size=2), workers=0)
        assert (batch.images.shape, batch.images.dtype) == ((1, 5, 16, 16), torch.float32)
        assert batch.images.amax() == pytest.approx(1 / 255)
        assert batch.unreadable == ["gone.npy is not a readable image: No such file or directory"]
