"""Hugging Face data sets, through timm's reader of them."""

import importlib
from functools import partial
from typing import Any

import numpy as np
from timm.data.readers import create_reader

from t2t_vit.data.images import ImageSet, file_images
from t2t_vit.data.splitting import Split, Splits
from t2t_vit.errors import UserError

VAL_SPLITS = ("validation", "val", "valid", "test")


def hugging_face_splits(data: str, data_dir: str | None) -> Splits:
    """The split train, and the first of validation, val, valid and test; if there is none, train as one whole.

    Args:
        data: "hfds/NAME" or "hfds/NAME:COLUMN": a data set of the Hub or a folder, and its column of labels.
        data_dir: the library's cache folder; None takes the library's own.

    Raises:
        UserError: the library is not installed, cannot get the data, or finds no images with labels.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"{data} needs a package that is not installed: pip install datasets.") from None
    name, _, column = data.partition(":")
    try:
        builder = datasets.load_dataset_builder(name.removeprefix("hfds/"), cache_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:  # the library has no error class: Hub, cache and file formats speak here
        raise UserError(f"{data} cannot be loaded: {str(error) or type(error).__name__}") from error
    columns, names = builder.info.features, list(builder.info.splits)
    settings = {
        "root": data_dir,
        "input_key": _choose(columns, datasets.Image, "image", name),
        "target_key": _choose(columns, datasets.ClassLabel, column or "label", name, must_exist=bool(column)),
    }
    splits = [
        Split(f"split {split} of {data}", partial(_read, name, split, **settings))
        for split in ("train", *VAL_SPLITS)
        if split in names
    ]
    if not splits:
        raise UserError(f"Expected a split train in {data}, found {', '.join(names)}.")
    if "train" not in names:
        return Splits(data, val=splits[0])
    return Splits(data, splits[0], splits[1]) if len(splits) > 1 else Splits(data, whole=splits[0])


def _choose(columns: dict[str, Any], kind: type, name: str, data: str, *, must_exist: bool = False) -> str:
    """The column of this name; if there is none and it need not exist, the only column of this kind."""
    if name in columns:
        return name
    fitting = [column for column in columns if isinstance(columns[column], kind) and not must_exist]
    if len(fitting) != 1:
        raise UserError(
            f"Expected a column {name!r} in {data}, or one {kind.__name__} column; "
            f"it has {', '.join(columns)}. Name the one of labels so: hfds/NAME:COLUMN."
        )
    return fitting[0]


def _read(data: str, split: str, **settings: Any) -> tuple[tuple[str, ...], ImageSet]:
    reader = create_reader(data, split=split, **settings)
    targets = list(reader.iter_targets())
    without = [target for target in targets if not isinstance(target, int | str) or target == -1]
    if without:
        raise UserError(
            f"{len(without)} of {len(targets)} images of split {split} of {data} belong to no single class: "
            f"their {settings['target_key']} is {without[0]}."
        )
    class_names, labels = tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.get)), targets
    if not class_names:  # the labels are plain numbers or words
        classes, indices = np.unique(targets, return_inverse=True)
        class_names, labels = tuple(map(str, classes)), indices.tolist()
    image_names = [f"{split}/{class_names[label]}/{row:07d}" for row, label in enumerate(labels)]
    return class_names, file_images(partial(_read_file, reader), image_names, labels)


def _read_file(reader: Any, index: int) -> bytes:
    with reader[index][0] as file:
        return file.read()
