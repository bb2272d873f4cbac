"""Batches: the same images whatever the workers, the processes and the restarts; every image once in evaluation."""

import os
import random
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch

from t2t_vit.data.images import ImageSet, UnreadableImage, crop_pixels
from t2t_vit.data.loading import (
    Draw,
    DrawnImages,
    EpochBatches,
    EvaluationBatches,
    default_workers,
    make_loader,
)
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


def load(unreadable, index, crop=None):
    if index in unreadable:
        raise UnreadableImage(f"{index}.png", "cut off")
    return crop_pixels([np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)], crop)


def image_set(num_images, unreadable=()):
    names = [f"{index}.png" for index in range(num_images)]
    return ImageSet(names, [index % 3 for index in range(num_images)], partial(load, unreadable))


def training(num_images=10, batch_size=4, *, unreadable=(), rank=0, world_size=1):
    """Augmented images, and batches with nothing yielded yet."""
    crop, transform = train_transform(CONFIG, **AUGMENTATION)
    images = DrawnImages(image_set(num_images, unreadable), transform, crop=crop)
    return images, EpochBatches(num_images, batch_size=batch_size, rank=rank, world_size=world_size)


def same(left, right):
    return all(torch.equal(x, y) for x, y in zip(left[:3], right[:3], strict=True)) and left[3] == right[3]


def epoch_order(num_images, epoch, **settings):
    batches = EpochBatches(num_images, batch_size=num_images, **settings)
    batches.set_steps(epoch, epoch + 1)
    return [draw.image_index for batch in batches for draw in batch]


# The order of an epoch


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [epoch_order(50, 0), epoch_order(50, 1), epoch_order(50, 0, seed=7)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(50, 1) == orders[1]


def test_draws_carry_epoch_and_position():
    batches = EpochBatches(10, batch_size=4)
    batches.set_steps(6, 8)
    drawn = list(batches)
    assert [[draw[:2] for draw in batch] for batch in drawn] == [
        [(3, p) for p in range(4)],
        [(3, p) for p in range(4, 8)],
    ]
    assert len(batches) == batches.batches_per_epoch == 2


def test_a_run_goes_on_from_any_step_and_over_the_ends_of_epochs():
    batches = EpochBatches(20, batch_size=4)
    batches.set_steps(0, 15)
    whole = list(batches)
    assert (len(whole), batches.batches_per_epoch) == (15, 5)
    for first, end in ((3, 5), (5, 10), (8, 15), (14, 14)):
        batches.set_steps(first, end)
        assert list(batches) == whole[first:end]
        assert len(batches) == end - first


def test_an_evaluation_may_take_a_part_of_the_images():
    shares = [EvaluationBatches(10, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for share in shares:
        share.choose([1, 4, 6, 7, 9])
    drawn = [[[draw.image_index for draw in batch] for batch in share] for share in shares]
    assert drawn == [[[1, 6], [9]], [[4, 7]]]
    assert [len(share) for share in shares] == [2, 1]


@pytest.mark.parametrize("num_images", [24, 5])
def test_processes_together_draw_what_one_would(num_images):
    alone = list(EpochBatches(num_images, batch_size=12))
    shares = [list(EpochBatches(num_images, batch_size=12, rank=rank, world_size=3)) for rank in range(3)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(chain(*parts)) == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= (num_images < 12)


def test_fewer_images_than_a_batch_make_one_batch():
    assert [len(batch) for batch in EpochBatches(5, batch_size=8)] == [5]


def test_a_batch_is_shared_evenly():
    with pytest.raises(UserError, match=r"that 3 process\(es\) can share evenly, got 64. Give a multiple of 3."):
        EpochBatches(100, batch_size=64, world_size=3)
    with pytest.raises(UserError, match=r"can share evenly, got 0"):
        EpochBatches(100, batch_size=0)
    with pytest.raises(UserError, match=r"2 training images are too few for 4 processes: start fewer"):
        EpochBatches(2, batch_size=4, world_size=4)


@pytest.mark.parametrize(("num_images", "batch_size", "world_size"), [(10, 4, 1), (10, 3, 4), (2, 8, 3)])
def test_evaluation_takes_every_image_once(num_images, batch_size, world_size):
    shares = [
        EvaluationBatches(num_images, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sorted(draw.image_index for share in shares for batch in share for draw in batch) == list(range(num_images))
    assert all(0 < len(batch) <= batch_size for share in shares for batch in share)


# The images of a batch


def test_augmentation_depends_on_seed_epoch_and_position_alone():
    images, _ = training()
    first = images[Draw(1, 2, 3)].image
    others = [
        images[Draw(2, 2, 3)],
        images[Draw(1, 3, 3)],
        DrawnImages(images.images, images.transform, crop=images.crop, seed=1)[Draw(1, 2, 3)],
    ]
    assert not any(torch.equal(first, other.image) for other in others)
    assert torch.equal(first, images[Draw(1, 2, 3)].image)
    together = images.__getitems__([Draw(1, 1, 9), Draw(1, 2, 3)])
    assert torch.equal(first, together[1].image)


@pytest.mark.parametrize("generator", ["python", "numpy", "torch"])
def test_every_generator_is_seeded(generator):
    draws = {"python": random.random, "numpy": np.random.random, "torch": lambda: torch.rand(()).item()}
    images = DrawnImages(image_set(3), lambda image: torch.tensor(draws[generator](), dtype=torch.float64))
    values = [images[Draw(0, position, 0)].image.item() for position in (0, 1, 0)]
    assert values[0] == values[2] != values[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    images, batches = training()
    alone, others = make_loader(images, batches, workers=0), make_loader(images, batches, workers=workers)
    # The third: the same workers go on in the middle of an epoch, after an iteration that was left early.
    for epoch, start_batch in ((0, 0), (5, 0), (5, 1)):
        batches.set_steps(2 * epoch + start_batch, 2 * epoch + 2)
        expected = list(alone)
        assert len(expected) == 2 - start_batch
        next(iter(others))
        assert all(same(*pair) for pair in zip(expected, others, strict=True))


def test_two_processes_load_what_one_would():
    whole = next(iter(make_loader(*training(), workers=0)))
    shares = [next(iter(make_loader(*training(rank=rank, world_size=2), workers=0))) for rank in range(2)]
    for rank, share in enumerate(shares):
        assert torch.equal(share.images, whole.images[rank::2])
        assert torch.equal(share.indices, whole.indices[rank::2])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_trainings_random_numbers_alone(workers):
    def numbers():
        return random.random(), np.random.random(), torch.rand(()).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = numbers()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    list(make_loader(*training(), workers=workers))
    assert numbers() == expected


def test_a_batch_holds_the_images_it_names():
    images = DrawnImages(image_set(7), eval_transform({**CONFIG, "input_size": (3, 20, 20)}), seed=None)
    batches = list(make_loader(images, EvaluationBatches(7, batch_size=4), workers=0))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6]]
    assert batches[1].targets.tolist() == [1, 2, 0]
    pixels = np.array(load((), 5))[:, 2:22]  # the centre of 20 x 24, which is resized to its own height
    assert torch.equal(batches[1].images[1], torch.from_numpy(pixels).permute(2, 0, 1))


def test_batches_are_bytes_with_channels_innermost():
    batch = next(iter(make_loader(*training(), workers=0)))
    assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (4, 3, 16, 16))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    normalized = Normalize(CONFIG, torch.device("cpu"))(batch.images)
    assert normalized.is_contiguous()


# Unreadable images


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_left_out_and_named(workers):
    batches = EvaluationBatches(4, batch_size=2)
    transform = eval_transform(CONFIG)
    loader = make_loader(DrawnImages(image_set(4, unreadable=(0, 2, 3)), transform), batches, workers=workers)
    first, second = loader
    assert (first.targets.tolist(), first.indices.tolist(), len(first.images)) == ([1], [1], 1)
    assert first.unreadable == ["0.png is not a readable image: cut off"]
    # None is left of the second, and it still arrives, in the shape a network takes.
    assert (second.images.shape, second.targets.shape, second.targets.dtype) == ((0, 3, 16, 16), (0,), torch.int64)
    assert len(second.unreadable) == 2


def test_an_unreadable_image_does_not_change_its_neighbours():
    whole, holed = (next(iter(make_loader(*training(unreadable=bad), workers=0))) for bad in ((), (6,)))
    missing = [row for row, index in enumerate(whole.indices.tolist()) if index != 6]
    assert len(missing) == 3, "image 6 is in the first batch of epoch 0 for this test to say anything"
    assert torch.equal(holed.images, whole.images[missing])


# Workers


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, None, 0), (2, None, 2), (64, None, 8), (64, 16, 4), (8, 8, 0)]
)
def test_default_workers(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers() == workers


@pytest.mark.parametrize("repeats", [1, 3])
def test_balanced_batches_draw_all_classes_equally_often(repeats):
    labels = [0] * 84 + [1] * 12 + [2] * 4
    batches = EpochBatches(100, batch_size=100, repeats=repeats, labels=labels)
    batches.set_steps(0, 6)
    drawn = Counter()
    for batch in batches:
        rows = [draw.image_index for draw in batch]
        counts = Counter(labels[row] for row in rows)
        if repeats == 1:
            assert sorted(counts.values()) == [33, 33, 34]
            assert {Counter(rows)[row] for row in range(84, 96)} <= {2, 3}
            assert {Counter(rows)[row] for row in range(96, 100)} <= {8, 9}
        drawn.update(rows)
    assert len(drawn) > (90 if repeats == 1 else 50)  # those of the frequent class take turns
    again = EpochBatches(100, batch_size=100, repeats=repeats, labels=labels)
    again.set_steps(3, 4)
    batches.set_steps(3, 4)
    assert list(again) == list(batches)


def test_processes_share_balanced_batches():
    labels = [0] * 30 + [1] * 6
    alone = list(EpochBatches(36, batch_size=12, labels=labels))
    shares = [list(EpochBatches(36, batch_size=12, labels=labels, rank=rank, world_size=3)) for rank in range(3)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert sorted(draw for part in parts for draw in part) == sorted(batch)


FAILING = """
import os, signal
import numpy as np
from t2t_vit.data.images import ImageSet, crop_pixels
from t2t_vit.data.loading import DrawnImages, EpochBatches, make_loader
from t2t_vit.data.transforms import train_transform

def load(index, crop=None):
    return crop_pixels([np.zeros((20, 20, 3), np.uint8)], crop)

crop, transform = train_transform(
    {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
)
images = DrawnImages(ImageSet([str(index) for index in range(8)], [0] * 8, load), transform, crop=crop)
batches = EpochBatches(8, batch_size=4)
batches.set_steps(0, 2)

def work():
    global loader
    loader = make_loader(images, batches, workers=2)
    count = sum(len(batch.images) for batch in loader)  # both workers live then
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # as a scheduler does
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(count, sum(len(batch.images) for batch in loader), flush=True)
    raise RuntimeError("the step failed")
"""
ALONE = "work()"
IN_A_PROCESS = """
import multiprocessing, sys
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
process.join()
sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("where", [ALONE, IN_A_PROCESS])
def test_a_script_that_fails_ends_with_its_workers(where):
    """They outlive a scheduler's SIGTERM, and not the one with which Python ends them where an exception holds them."""
    command = [sys.executable, "-c", FAILING + where]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, start_new_session=True)
    assert (done.stdout, done.returncode) == ("8 8\n", 1)
    assert "RuntimeError: the step failed" in done.stderr
