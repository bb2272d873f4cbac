"""Hugging Face data sets, through timm's reader of them."""

import importlib
from functools import partial
from typing import Any

from PIL import Image
from timm.data.readers import create_reader

from t2t_vit.data.crops import Crop
from t2t_vit.data.images import ImageSet, Part, Parts, UnreadableImage, read_image
from t2t_vit.errors import UserError

VAL_SPLITS = ("validation", "val", "valid", "test")


def hugging_face_parts(name: str, data_dir: str | None) -> Parts:
    """The split train, and the first of validation, val, valid and test; without these, train is to be split.

    Args:
        name: a data set of the Hub or a folder, and, after a colon, its column of labels where there are several.
        data_dir: the library's cache folder; None for its own.

    Raises:
        UserError: the library is not installed, cannot get the data, or finds no images with labels.
    """
    title = f"hfds/{name}"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"{title} needs a package that is not installed: pip install datasets.") from None
    path, _, named = name.partition(":")
    try:
        builder = datasets.load_dataset_builder(path, cache_dir=data_dir)
        builder.download_and_prepare()
    except Exception as error:  # it has no error class of its own: Hub, cache and file formats speak here
        raise UserError(f"{title} cannot be loaded: {str(error) or type(error).__name__}") from error
    columns, splits = builder.info.features, list(builder.info.splits)
    image_key = _choose(columns, datasets.Image, "image", title)
    label_key = _choose(columns, datasets.ClassLabel, "label", title, named=named)

    settings = {"root": data_dir, "input_key": image_key, "target_key": label_key}
    found = [
        Part(f"split {split} of {title}", partial(_read, path, split, **settings))
        for split in ("train", *VAL_SPLITS)
        if split in splits
    ]
    if not found:
        raise UserError(f"Expected a split train in {title}, found {', '.join(splits)}.")
    if "train" not in splits:
        return Parts(title, val=found[0])
    return Parts(title, found[0], found[1]) if len(found) > 1 else Parts(title, whole=found[0])


def _choose(columns: dict[str, Any], kind: type, usual: str, title: str, *, named: str = "") -> str:
    """The column that is named, or else the one with the usual name, or the only one of the kind."""
    if (named or usual) in columns:
        return named or usual
    fitting = [name for name, column in columns.items() if isinstance(column, kind) and not named]
    if len(fitting) != 1:
        raise UserError(
            f"Expected a column {named or usual!r} in {title.partition(':')[0]}, or one {kind.__name__} column; "
            f"it has {', '.join(columns)}. Name the one of labels so: hfds/NAME:COLUMN."
        )
    return fitting[0]


def _read(path: str, split: str, **settings: Any) -> tuple[tuple[str, ...], ImageSet]:
    reader = create_reader(f"hfds/{path}", split=split, **settings)
    targets = list(reader.iter_targets())
    without = [target for target in targets if not isinstance(target, int | str) or target == -1]
    if without:
        raise UserError(
            f"{len(without)} of {len(targets)} images of split {split} of hfds/{path} belong to no single class: "
            f"their {settings['target_key']} is {without[0]}."
        )
    known = {value: name for name, value in reader.class_to_idx.items()} or {value: value for value in set(targets)}
    position = {value: index for index, value in enumerate(sorted(known))}
    class_names = tuple(str(known[value]) for value in position)
    labels = [position[target] for target in targets]
    names = [f"{split}/{class_names[label]}/{row:07d}" for row, label in enumerate(labels)]
    return class_names, ImageSet(names, labels, partial(_load, reader, names))


def _load(reader: Any, names: list[str], index: int, crop: Crop | None = None) -> Image.Image:
    try:
        file, _ = reader[index]
    except OSError as error:  # the file that a row names is not there
        raise UnreadableImage(names[index], error.strerror or str(error)) from error
    with file:
        return read_image(file, crop, name=names[index])
