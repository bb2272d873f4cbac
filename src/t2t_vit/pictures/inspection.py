"""The command `data`: prints the report of some data, and writes the list and the page of its suspects."""

import contextlib
import csv
import hashlib
import io
import re
import shlex
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
from PIL import ImageOps

from t2t_vit.data.check import inspect_data, summarize, verify
from t2t_vit.data.config import DataConfig
from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.pixels import as_seen
from t2t_vit.data.sources import Source, absolute_path, open_configured
from t2t_vit.data.suspects import (
    BLANK,
    COLUMNS,
    CONFLICT,
    EXACT,
    NEAR,
    ODD_SHAPE,
    TINY,
    UNREADABLE,
    WRONG_LABEL,
    Suspects,
)
from t2t_vit.pictures.html import render, thumbnail
from t2t_vit.pictures.sheet import draw_sheet
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.durations import parse_duration
from t2t_vit.runtime.files import as_bytes, json_text, whole_file, write_errors_told, write_text

LIST = "suspects.csv"
NUM_SHOWN = 60
NUM_ROWS, SHEET_COLUMNS, SHEET_PX = 24, 12, 96
NOTES = {
    WRONG_LABEL: "A simple classifier, fitted on the other images, takes each for another class. It errs too.",
    CONFLICT: "The same picture, or nearly, bears different labels. Listed are those with another label than most "
    "of its copies; where no label is that of most, all of them: keep the right ones.",
    EXACT: "The same pixels as another image, which stays. A copy of a validation image in training makes the accuracy "
    "look higher than it is.",
    NEAR: "Nearly the same picture as another image, which stays: another size, compression, brightness or frame.",
    UNREADABLE: "Training leaves these out anyway.",
    BLANK: "One colour all over, up to the noise of a JPEG.",
    TINY: "Much smaller than the others.",
    ODD_SHAPE: "Much longer than the others: a crop of it shows little.",
}


def data_command(config: DataConfig) -> int:
    """`t2t-vit data`: prints the report, writes the suspects and, with --verify, names every unreadable image.

    Returns:
        The exit code: 2 if --verify finds unreadable images, else 0.
    """
    source = open_configured(config)
    if config.show is not None:
        print(f"{write_sheet(source, Path(config.show))} classes of {source.name}: {config.show}")
        return 0
    if not config.json:
        print(summarize(source, {}).describe_classes(), flush=True)  # decoding may take long
    report = inspect_data(source, limit_s=parse_duration(config.max_time), display=Display(stderr=True))
    assert report.suspects is not None
    if not config.json:
        print(report.describe_images(), flush=True)
    path = write_suspects(report.suspects, source, config) if report.suspects.found else None
    if path is not None and not config.json:
        print(f"list: {path}\npage: {path.with_suffix('.html')}", flush=True)
    unreadable = verify(source, workers=config.workers) if config.verify else []
    if config.json:
        content = report.to_json() | {"list": path and str(path)}
        print(json_text(content | ({"unreadable": unreadable} if config.verify else {})))
    elif config.verify:
        total = len(source.train) + len(source.val)
        print(*unreadable, f"{len(unreadable):,} of {total:,} images cannot be read.", sep="\n")
    return 2 if unreadable else 0


def write_sheet(source: Source, path: Path) -> int:
    """Writes a picture with a row of training images of each class, evenly chosen where there are many classes.

    Returns:
        The number of classes shown.

    Raises:
        UserError: the file cannot be written.
    """
    labels = np.asarray(source.train.labels)
    pixels, captions = [], []
    shown = [*dict.fromkeys(np.linspace(0, len(source.class_names) - 1, NUM_ROWS).round().astype(int).tolist())]
    for label in shown:
        rows = np.flatnonzero(labels == label)
        chosen = rows[np.linspace(0, len(rows) - 1, SHEET_COLUMNS).astype(int)].tolist()
        pictures = []
        for row in dict.fromkeys(chosen):
            with contextlib.suppress(UnreadableImage):
                pictures.append(as_seen(source.train.load(row)))
        squares = [np.asarray(ImageOps.pad(picture, (SHEET_PX, SHEET_PX), color="white")) for picture in pictures]
        blank = np.full((SHEET_PX, SHEET_PX, 3), 255, np.uint8)
        pixels += [*squares, *[blank] * (SHEET_COLUMNS - len(squares))]
        captions += [source.class_names[label], *[""] * (SHEET_COLUMNS - 1)]
    sheet = draw_sheet(np.stack(pixels), captions, columns=SHEET_COLUMNS)
    with whole_file(path) as file:
        sheet.save(file, "png")
    return len(shown)


def write_suspects(suspects: Suspects, source: Source, config: DataConfig) -> Path:
    """Writes suspects.csv and suspects.html, and returns the list's path.

    A list that somebody has edited, that is of other data, or that --exclude names, stays; the new one gets a number.
    Images that were left out already stand in the new list too, so that it can take the place of the old one.

    Raises:
        UserError: the folder cannot be written.
    """
    directory = Path(config.output or f"runs/{Path(config.data).resolve().name.removesuffix('.tar')}-data")
    with write_errors_told(directory):
        directory.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    left_out = [(name, "", "", "left out before", "", "") for name in source.split.get("excluded", ())]
    writer.writerows([COLUMNS, *suspects.found, *left_out])
    content = as_bytes(table.getvalue())
    path = directory / LIST
    for number in count(2):
        is_taken = config.exclude is not None and path.resolve() == Path(config.exclude).expanduser().resolve()
        if not path.exists() or (not is_taken and _stamp(path.read_bytes(), source) in _stamps(path, content, source)):
            break
        path = directory / f"{Path(LIST).stem}-{number}.csv"
    write_text(path, table.getvalue())
    write_text(path.with_suffix(".html"), suspects_page(suspects, source, path, config))
    return path


def _stamps(path: Path, content: bytes, source: Source) -> list[str]:
    """The stamps of lists that may be written over: the one that the page was made of, and the new one itself."""
    try:
        page = path.with_suffix(".html").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        page = ""
    return [_stamp(content, source), *re.findall("List ([0-9a-f]{40})", page)[-1:]]


def _stamp(content: bytes, source: Source) -> str:
    """What tells a list, and the data that it is of, from others."""
    return hashlib.sha1(content + as_bytes(absolute_path(source.name))).hexdigest()


def suspects_page(suspects: Suspects, source: Source, path: Path, config: DataConfig) -> str:
    """The page that shows suspects, by their reasons; `path` is that of their list, which is there."""
    rows = {name: (images, row) for images in source.parts.values() for row, name in enumerate(images.names)}
    reasons = {}
    for reason, total in suspects.count().items():
        shown = [suspect for suspect in suspects.found if suspect.reason == reason][:NUM_SHOWN]
        pictures = [(suspect, _picture(suspect.image, rows), _picture(suspect.like, rows)) for suspect in shown]
        reasons[reason] = (NOTES[reason], total, pictures)
    return render(
        "suspects.html.j2",
        title=f"Suspects of {source.short_name}",
        about=str(suspects),
        list=path,
        command=shlex.join(["t2t-vit", "train", source.name, *_same_data(config), "--exclude", str(path)]),
        reasons=reasons,
        stamp=_stamp(path.read_bytes(), source),
    )


def _picture(name: str, rows: Mapping[str, tuple[ImageSet, int]]) -> object:
    return thumbnail(*rows[name]) if name in rows else None


def _same_data(config: DataConfig) -> list[str]:
    """The flags that make `train` open the data as `data` did."""
    usual, words = DataConfig(data=config.data), []
    for name in ("data_dir", "val_fraction", "group_by", "in_chans", "background"):
        if (value := getattr(config, name)) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words
