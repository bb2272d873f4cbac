"""Opens data by its name, to train or to evaluate on."""

import os
import pkgutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from t2t_vit.data.config import SOURCES, DataSettings
from t2t_vit.data.exclusion import read_excluded, refuse_unknown
from t2t_vit.data.folders import folder_splits
from t2t_vit.data.images import ImageSet
from t2t_vit.data.pixels import RGB, PixelFormat
from t2t_vit.data.splitting import Split, Splits, divided_groups, given_split, split_by_class, without
from t2t_vit.errors import UserError, abbreviate, closest

SHARDS = "wds/"
"""What stands before the folder of webdataset shards."""


def refuse_stream(data: str) -> NoReturn:
    """Refuses data that its library streams."""
    raise UserError(
        f"{data} would be read as a stream, which cannot go on in the middle of an epoch with the same images. "
        "Write its images to class folders, or to webdataset shards for wds/FOLDER."
    )


TAKE_DATA_DIR = ("cifar10", "cifar100", "hfds/")


@dataclass(frozen=True)
class Source:
    """What to train on and what to validate on.

    Attributes:
        name: the data, as the user wrote it.
        class_names: the name of each label, in train and in val.
        split: how train and val were separated, as plain JSON values; equal records mean equal splits.
        test: images for a last look after training, if the data has them.
        notes: a sentence for each thing in the data that is no part of these.
    """

    name: str
    train: ImageSet
    val: ImageSet
    class_names: tuple[str, ...]
    split: dict[str, Any]
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, ImageSet]:
        """The images by part: train, val and, where there is one, test."""
        parts = {"train": self.train, "val": self.val}
        return parts if self.test is None else {**parts, "test": self.test}

    @property
    def short_name(self) -> str:
        """The name without the folders before it."""
        return Path(self.name).name

    def in_format(self, format: PixelFormat) -> "Source":
        """The same data, with its images read as something else."""
        train, val = self.train.in_format(format), self.val.in_format(format)
        return replace(self, train=train, val=val, test=self.test and self.test.in_format(format))


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate on; `part` says in words which part of the data that is."""

    images: ImageSet
    class_names: tuple[str, ...]
    part: str


def open_source(
    data: str,
    *,
    data_dir: str | None = None,
    val_fraction: float = 0.2,
    seed: int = 42,
    format: PixelFormat = RGB,
    group_by: str | None = None,
    exclude: str | None = None,
) -> Source:
    """The training and validation images of some data, and those to test on where it has some.

    Args:
        data: a name of `SOURCES`; else a folder or a .tar file that holds train/ and val/, or train/ alone, or class
            folders alone.
        data_dir: the folder of cifar10 and cifar100, by default data/; the cache of hfds/NAME.
        val_fraction: share of each class to split off if there is no val.
        seed: seed of that split.
        format: what the images are read as.
        group_by: a regular expression that finds in an image's name the group that must stay on one side of that split.
        exclude: a list of images to leave out, as `read_excluded` takes it.

    Raises:
        UserError: there is no such data, or the classes of train and val differ; or the groups or the list do not fit.
    """
    excluded = frozenset[str]() if exclude is None else read_excluded(exclude)
    splits = _open(data, data_dir)
    notes = splits.notes
    if splits.whole is not None:
        class_names, listed = splits.whole.read()
        read = [listed]
        kept = _without(listed, excluded, class_names, splits.title)
        _refuse_single_images(kept, class_names, splits.title)
        train, val, record = split_by_class(
            kept, class_names=class_names, val_fraction=val_fraction, seed=seed, group_by=group_by
        )
    else:
        class_names, train, val = _read_given(splits)
        read = [train, val]
        train, val = (_without(images, excluded, class_names, splits.title) for images in read)
        record = given_split(train, val)
        if group_by is not None and (divided := divided_groups(train.names, val.names, group_by)):
            sentence = f"groups of --group-by with images both to train on and to validate on, {len(divided):,} in all"
            notes = (*notes, f"{sentence}: {abbreviate(divided)}")
    if excluded:
        record["excluded"] = sorted(excluded)
    test = None
    if splits.test is not None:
        test_names, test = splits.test.read()
        if set(test_names).isdisjoint(class_names):
            test, notes = None, (*notes, f"{splits.test.title} has none of these classes, and is left out")
        else:
            known = [name for name in class_names if name in set(test_names)]  # a small test/ may lack rare classes
            _refuse_other_classes(known, test_names, "training", splits.test)
            test = replace(test, labels=[class_names.index(test_names[label]) for label in test.labels])
            read.append(test)
            test = without(test, excluded)
            if len(test) == 0:
                test, notes = None, (*notes, f"--exclude leaves no image of {splits.test.title}, which is left out")
    refuse_unknown(excluded, read, data)
    notes = (*notes, *_name_ignored(read))
    if excluded:
        notes = (*notes, f"left out, as --exclude names them: {len(excluded):,}")
    source = Source(data, train, val, class_names=class_names, split=record, test=test, notes=notes)
    return source.in_format(format)


def open_configured(settings: DataSettings) -> Source:
    """`open_source` as the settings of a command say."""
    return open_source(
        settings.data,
        data_dir=settings.data_dir,
        val_fraction=settings.val_fraction,
        format=PixelFormat(settings.in_chans, settings.background),
        group_by=settings.group_by,
        exclude=settings.exclude,
    )


def absolute_path(data: str) -> str:
    """The same data from any working directory: an absolute path for a folder or a file; names stay names."""
    name = _name_of(data)
    if name == SHARDS:
        return f"{SHARDS}{Path(data.removeprefix(SHARDS)).expanduser().resolve()}"
    return data if name in SOURCES else str(Path(data).expanduser().resolve())


def _name_of(data: str) -> str:
    """What `SOURCES` knows the data by, if it does."""
    return "".join(data.partition("/")[:2])


def _without(images: ImageSet, excluded: Collection[str], class_names: Sequence[str], title: str) -> ImageSet:
    """The images but those to leave out, of which each class must have some."""
    kept = without(images, excluded)
    emptied = [class_names[label] for label in sorted({*images.labels} - {*kept.labels})]
    if emptied:
        raise UserError(f"--exclude leaves no image of {abbreviate(emptied)} in {title}: shorten the list.")
    return kept


def _read_given(splits: Splits) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """Class names, training and validation images of data that comes with both."""
    train, val = splits.train, splits.val
    if train is None:
        there = val or splits.test
        assert there is not None
        raise UserError(
            f"{splits.title} has images to {'validate' if val else 'test'} on but none to train on. "
            f"Add train/, or give {there.title} to train on a part of that."
        )
    assert val is not None  # else it is one whole
    class_names, train_images = train.read()
    val_names, val_images = val.read()
    _refuse_other_classes(class_names, val_names, train.title, val)
    return class_names, train_images, val_images


def _name_ignored(read: Sequence[ImageSet]) -> list[str]:
    """A sentence about the files that are no images, if there are any."""
    ignored = sum((Counter(images.ignored) for images in read), Counter[str]())
    if not ignored:
        return []
    kinds = sorted(ignored, key=lambda kind: (-ignored[kind], kind))
    named = abbreviate(f"{kind} {ignored[kind]:,}" for kind in kinds)
    return [f"{ignored.total():,} files of other kinds are ignored: {named}"]


def open_evaluation(
    data: str, *, data_dir: str | None = None, trained_split: Mapping[str, Any] | None = None
) -> Evaluation:
    """The images of some data to measure a trained model on.

    They are the validation images if the data has some, else its test images. Otherwise they are what training split
    off for validation or, if training saw none of the data, all images. Of digits they are always the validation part.
    Of a run with --labels they are the images that it reported on.

    Args:
        data, data_dir: as for `open_source`.
        trained_split: `Source.split`, if the model's checkpoint recorded it.

    Raises:
        UserError: as `open_source`.
    """
    splits = _open(data, data_dir)
    known = dict(trained_split or {})
    labels = known.pop("labels", {})
    given = splits.test if labels.get("reported") == "test" else None
    given = given or splits.val or splits.test
    if given is not None:
        class_names, images = given.read()
        kept = without(images, set(known.get("excluded", ())))
        left_out = f", without {len(images) - len(kept)} that training excluded" if len(kept) < len(images) else ""
        return Evaluation(kept, class_names, f"{given.title}{left_out}")
    assert splits.whole is not None
    class_names, images = splits.whole.read()
    settings = {key: known[key] for key in ("val_fraction", "seed", "group_by") if key in known}
    if settings:
        excluded = {"excluded": known["excluded"]} if "excluded" in known else {}
        kept = without(images, set(excluded.get("excluded", ())))
        try:
            _, val, split = split_by_class(kept, class_names=class_names, **settings)
        except UserError:  # other images, whose groups cannot be split so
            split = {}
        if {**split, **excluded} == known:
            return Evaluation(val, class_names, f"validation part of {splits.title}, as split for training")
    if splits.always_split:
        return Evaluation(open_source(data).val, class_names, f"validation part of {splits.title}")
    other = ", which holds other images than training split" if settings else ""
    return Evaluation(images, class_names, f"all of {splits.title}{other}")


def _open(data: str, data_dir: str | None) -> Splits:
    name = _name_of(data)
    find_splits: Callable[..., Splits] = pkgutil.resolve_name(SOURCES[name]) if name in SOURCES else folder_splits
    if name in TAKE_DATA_DIR:
        return find_splits(data, data_dir)
    if data_dir is not None:
        raise UserError(
            f"--data-dir tells where cifar10, cifar100 and hfds/NAME are, and has no effect on {data}: leave it out."
        )
    if find_splits is folder_splits and not os.path.exists(os.path.expanduser(data)):  # noqa: PTH110, PTH111
        names = [name for name in SOURCES if not name.endswith("/")]
        raise UserError(f"There is no folder {data!r}. {closest(data, names, 'data set')}")
    return find_splits(data)


def _refuse_other_classes(train: Sequence[str], found: Sequence[str], train_title: str, part: Split) -> None:
    missing = [name for name in train if name not in set(found)]
    extra = [name for name in found if name not in set(train)]
    differences = [f"lacks {abbreviate(missing)}"] * bool(missing) + [f"has {abbreviate(extra)} besides"] * bool(extra)
    if differences:
        raise UserError(
            f"The classes of {part.title} must be those of {train_title}, but it {' and '.join(differences)}. "
            "Rename, add or remove classes until they agree."
        )
    assert list(train) == list(found)


def other_classes(found: Sequence[str], expected: Sequence[str]) -> str:
    """The names that differ between two lists of the same length, as "'flat' for 'lying'"; empty if none does."""
    return abbreviate(
        f"{ours!r} for {theirs!r}" for ours, theirs in zip(found, expected, strict=True) if ours != theirs
    )


def _refuse_single_images(images: ImageSet, class_names: Sequence[str], title: str) -> None:
    counts = np.bincount(images.labels, minlength=len(class_names))
    singles = [name for name, count in zip(class_names, counts, strict=True) if count == 1]
    if singles:
        raise UserError(
            f"{title} has no val/, and a split needs two images of each class, one to train on and one to validate; "
            f"these have one: {abbreviate(singles)}. Add images, or remove the folders."
        )
