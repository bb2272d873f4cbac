"""The command `data`: prints the report of some data, and writes the list and the page of its suspects."""

import csv
import hashlib
import io
import json
import re
import shlex
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from t2t_vit.data.check import inspect_data, summarize, verify
from t2t_vit.data.config import DataConfig
from t2t_vit.data.images import ImageSet
from t2t_vit.data.sources import Source, open_configured
from t2t_vit.data.suspects import BLANK, CONFLICT, EXACT, NEAR, ODD_SHAPE, TINY, UNREADABLE, WRONG_LABEL, Suspects
from t2t_vit.pictures.html import render, thumbnail
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.durations import parse_duration
from t2t_vit.runtime.files import write_errors_told, write_text

LIST, PAGE = "suspects.csv", "suspects.html"
NUM_SHOWN = 60
NOTES = {
    WRONG_LABEL: "A simple classifier, fitted on the other images, takes each for another class. It errs too.",
    CONFLICT: "The same picture, or nearly, bears different labels. All of them are in the list: keep the right ones.",
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
    if not config.json:
        print(summarize(source, {}).describe_classes(), flush=True)  # decoding may take long
    report = inspect_data(source, limit_s=parse_duration(config.max_time), display=Display(stderr=True))
    assert report.suspects is not None
    path = write_suspects(report.suspects, source, _directory(config)) if report.suspects.found else None
    if not config.json:
        print(report.describe_images(), flush=True)
        if path is not None:
            print(f"list: {path}\npage: {path.with_suffix('.html')}", flush=True)
    unreadable = verify(source, workers=config.workers) if config.verify else []
    if config.json:
        content = report.to_json() | {"list": path and str(path)}
        content |= {"unreadable": unreadable} if config.verify else {}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif config.verify:
        total = len(source.train) + len(source.val)
        print(*unreadable, f"{len(unreadable):,} of {total:,} images cannot be read.", sep="\n")
    return 2 if unreadable else 0


def write_suspects(suspects: Suspects, source: Source, directory: Path) -> Path:
    """Writes suspects.csv and suspects.html. A list that is not as it was written stays; the new one gets a number.

    Returns:
        The list's path.

    Raises:
        UserError: the folder cannot be written.
    """
    with write_errors_told(directory):
        directory.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "part", "class", "reason", "detail", "like"])
    writer.writerows(suspects.found)
    content = table.getvalue()
    path = directory / LIST
    for number in count(2):
        if not path.exists() or _is_as_written(path) or _checksum(path) == hashlib.sha1(_bytes(content)).hexdigest():
            break
        path = directory / f"{Path(LIST).stem}-{number}.csv"
    write_text(path, content)
    write_text(path.with_suffix(".html"), suspects_page(suspects, source, path))
    return path


def suspects_page(suspects: Suspects, source: Source, path: Path) -> str:
    """The page that shows suspects, by their reasons; `path` is that of their list, which is there."""
    rows = {name: (images, row) for images in _parts(source) for row, name in enumerate(images.names)}
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
        command=f"t2t-vit train {shlex.quote(source.name)} --exclude {shlex.quote(str(path))}",
        reasons=reasons,
        checksum=_checksum(path),
    )


def _picture(name: str, rows: Mapping[str, tuple[ImageSet, int]]) -> object:
    return thumbnail(*rows[name]) if name in rows else None


def _parts(source: Source) -> list[ImageSet]:
    return [images for images in (source.train, source.val, source.test) if images is not None]


def _directory(config: DataConfig) -> Path:
    return Path(config.output or f"runs/{Path(config.data).resolve().name.removesuffix('.tar')}-data")


def _is_as_written(path: Path) -> bool:
    """Whether a list is the one that its page was made of, so that nobody has edited it."""
    try:
        page = path.with_suffix(".html").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    checksums = re.findall("List [0-9a-f]{40}", page)
    return f"List {_checksum(path)}" in checksums[-1:]


def _checksum(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
