"""Decoded images in memory: the same ones, and not more than fit."""

import io
import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import resolve_data_config

from t2t_vit.data import cache
from t2t_vit.data.cache import cached, refuse_large_cache
from t2t_vit.data.images import ImageSet, UnreadableImage, array_images, read_image
from t2t_vit.data.loading import DrawnImages, EpochBatches, make_loader
from t2t_vit.data.transforms import eval_transform, train_transform
from t2t_vit.errors import UserError

CONFIG = resolve_data_config({"input_size": (3, 16, 16)})
SIZES = [(30, 20), (150, 120), (70, 90), (40, 40), (260, 200), (17, 16)]


def load(files, index, crop=None):
    return read_image(io.BytesIO(files[index]), crop, name=f"{index}")


@pytest.fixture(scope="module")
def images():
    """JPEGs that are decoded at 1, 1/2, 1/4 and 1/8 for some crops, a PNG, and one that cannot be read."""
    rng = np.random.default_rng(0)
    files = []
    for index, (width, height) in enumerate(SIZES):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).resize((width, height))
        image.save(file := io.BytesIO(), "png" if index == 2 else "jpeg")
        files.append(file.getvalue())
    files.append(b"no image")
    return ImageSet([str(i) for i in range(len(files))], [i % 2 for i in range(len(files))], partial(load, files))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_is_loaded_is_the_same_to_the_last_bit(images, workers):
    crop, transform = train_transform(CONFIG, auto_augment="rand-m9-mstd0.5-inc1")
    batches = EpochBatches(len(images), batch_size=7)
    memory = cached(images, crop)
    assert memory.in_memory
    for epoch in range(6):
        batches.set_steps(epoch, epoch + 1)
        (expected,) = make_loader(DrawnImages(images, transform, crop=crop), batches, workers=0)
        (found,) = make_loader(DrawnImages(memory, transform, crop=crop), batches, workers=workers)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.indices, expected.indices)
        assert found.unreadable == expected.unreadable
        assert len(found.images) == len(SIZES)


def test_evaluation_gets_the_same_too(images):
    memory, transform = cached(images), eval_transform(CONFIG)
    assert all(torch.equal(transform(memory.load(i)), transform(images.load(i))) for i in range(len(SIZES)))
    assert (list(memory.names), list(memory.labels)) == (list(images.names), list(images.labels))
    with pytest.raises(UnreadableImage, match="6 is not a readable image"):
        memory.load(6)


def test_images_are_decoded_once(images):
    loaded = []

    def count(index, crop=None):
        loaded.append(index)
        return images.load(index, crop)

    memory = cached(ImageSet(images.names[:4], images.labels[:4], count))
    assert sorted(loaded) == [0, 1, 2, 3]
    memory.load(1)
    assert len(loaded) == 4


def test_more_than_fits_is_refused(images, monkeypatch):
    pixels = 3 * sum(width * height for width, height in SIZES)
    parts = [(images, None), (images, None)]
    monkeypatch.setattr(cache, "free_memory", lambda: 2 * pixels / cache.MAX_SHARE + 100)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    refuse_large_cache(*parts)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"would keep 14 decoded images in memory, about 0.00\d+ GB in 2 process\(es\)"):
        refuse_large_cache(*parts)


def test_smaller_decodings_count(images, monkeypatch):
    pixels = 3 * sum(width * height for width, height in SIZES)
    crop, _ = train_transform(CONFIG)
    for of, lowest, highest in ((None, 0.999, 1.001), (crop, 1.2, 1.34)):
        monkeypatch.setattr(cache, "free_memory", lambda times=highest: times * pixels / cache.MAX_SHARE)
        refuse_large_cache((images, of))
        monkeypatch.setattr(cache, "free_memory", lambda times=lowest: times * pixels / cache.MAX_SHARE)
        with pytest.raises(UserError, match="leave it out"):
            refuse_large_cache((images, of))


def test_what_is_in_memory_is_not_cached():
    arrays = array_images(np.zeros((4, 8, 8), np.uint8), list("abcd"), [0, 1, 0, 1])
    with pytest.raises(UserError, match="in memory, where these are already: leave it out"):
        refuse_large_cache((arrays.subset([0, 1]), None))


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        (None, None, 3000 * 1024),  # no container
        ("max", 500, 3000 * 1024),  # one without a limit
        ("2000000", 500, 2_000_000 - 500),
        ("9000000", 500, 3000 * 1024),  # one with a limit beyond what the machine has
    ],
)
def test_free_memory_is_the_machines_or_the_containers(tmp_path, limit, used, free):
    group = tmp_path / "sys/fs/cgroup"
    for folder in (tmp_path / "proc", group):
        folder.mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:     8000 kB\nMemFree:  100 kB\nMemAvailable:     3000 kB\n")
    if limit:
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.stat").write_text(f"anon {used}\nfile 7777777\n")
    assert cache.free_memory(tmp_path) == free


def test_free_memory_without_linux_is_half_of_the_machines(tmp_path):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert cache.free_memory(tmp_path) == total / 2
