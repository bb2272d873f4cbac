"""A label budget: some of the training images, a part of them to choose by, and other images to report on."""

from collections import Counter
from dataclasses import replace

from t2t_vit.data.images import ImageSet
from t2t_vit.data.sources import Source
from t2t_vit.data.splitting import fingerprint, hash_rank
from t2t_vit.errors import UserError, abbreviate

ONE_OF = 5
"""Of so many labels of a class one is to choose by: a fifth of them, and the second of two."""


def limit_labels(source: Source, count: int, *, seed: int, flag: str = "--labels") -> Source:
    """The data as if only some of its training images had labels.

    Each class has the same number of labels as far as its images go. A hash of names and seed ranks the images of a
    class, so that a larger budget of the same seed has all images of a smaller one, each on the same side.

    Args:
        source: its test images, or its validation images where it has none, are those to report on.
        count: labels to use.
        seed: another one draws other images.
        flag: what the user gave the number by.

    Returns:
        Images to train on; in the place of the validation images a fifth of the labels; in the place of the test images
        those to report on.

    Raises:
        UserError: there are fewer training images, or not two labels for each class.
    """
    _refuse_count(source, count, flag)
    images = source.train
    ranked = sorted(range(len(images)), key=lambda row: hash_rank(f"labels {seed} {images.names[row]}"))
    seen: Counter[int] = Counter()
    places = {}  # of each image in its class
    for row in ranked:
        label = images.labels[row]
        places[row] = seen[label]
        seen[label] += 1
    drawn = sorted(sorted(ranked, key=places.__getitem__)[:count])  # of equal places the first by rank
    train = images.subset([row for row in drawn if places[row] % ONE_OF != 1])
    val = images.subset([row for row in drawn if places[row] % ONE_OF == 1])
    reported = "val" if source.test is None else "test"
    test: ImageSet = source.val if source.test is None else source.test
    record = {"count": count, "seed": seed, "reported": reported, **fingerprint(train=train, val=val, test=test)}
    notes = source.notes
    if reported == "test":
        notes = (*notes, f"beside --labels, the {len(source.val):,} validation images are left aside")
    if "group_by" in source.split:
        notes = (*notes, "the labels to choose by are drawn without the groups of --group-by")
    return replace(source, train=train, val=val, test=test, split={**source.split, "labels": record}, notes=notes)


def _refuse_count(source: Source, count: int, flag: str) -> None:
    counts = Counter(source.train.labels)
    if count > len(source.train):
        raise UserError(
            f"{flag} must be at most the {len(source.train):,} training images of {source.name}, got {count:,}. "
            "Give fewer."
        )
    if count < 2 * len(counts):
        raise UserError(
            f"{flag} must be at least {2 * len(counts):,} for {len(counts):,} classes, two for each, one to learn "
            f"from and one to choose by, got {count:,}. Give more; {source.name} has {len(source.train):,}."
        )
    if single := [source.class_names[label] for label in sorted(counts) if counts[label] == 1]:
        raise UserError(
            f"{flag} needs two training images of each class, one to learn from and one to choose by; these have one: "
            f"{abbreviate(single)}. Add images, or remove the classes."
        )
