"""Labels with probabilities, for images from anywhere."""

import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from t2t_vit.deploy.config import PredictConfig
from t2t_vit.deploy.rows import Rows, as_json, as_text, open_rows
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.inference.inputs import find_images
from t2t_vit.inference.predictor import Prediction, Predictor
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.durations import format_duration
from t2t_vit.runtime.files import json_text

NUM_LABELS = 5


def predict(config: PredictConfig) -> None:
    """Prints the labels of images, or writes them to a file.

    Raises:
        UserError: for unreadable images, named, after all others were predicted.
    """
    paths = find_images(config.images)
    predictor = Predictor(
        config.checkpoint,
        device=config.device,
        background=config.background,
        runtime=config.runtime,
        trust_code=config.trust_code,
    )
    print(predictor.checkpoint.report, file=sys.stderr)
    top_k = min(config.top_k or NUM_LABELS, len(predictor.class_names))
    rows = open_rows(config.csv, config.jsonl, config.parquet, num_labels=top_k, embed=config.embed)
    done = 0 if rows is None else _number_done(rows, paths)
    if config.ray:
        from t2t_vit.deploy.on_ray import predict_on_ray  # here, because Ray is an extra

        predictions = predict_on_ray(config, paths[done:], top_k=top_k, batch_size=config.batch_size or 32)
    else:
        predictions = predictor(
            paths[done:],
            top_k,
            embed=config.embed,
            flip=config.flip,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    found = _Found(config.threshold)
    if rows is not None:
        _write(rows, found.pick(predictions), num_images=len(paths), num_done=done)
    elif config.json:
        _print_json(found.pick(predictions))
    else:
        _print_lines(found.pick(predictions), top_k=config.top_k or 1, is_only_one=len(paths) == 1)
    if found.unreadable:
        reasons = abbreviate(found.unreadable, separator="; ")
        raise UserError(f"{len(found.unreadable):,} of {found.count:,} images could not be read: {reasons}.")


class _Found:
    """Counts predictions, keeps why images were not readable, and drops unlikely labels."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.count, self.unreadable = threshold, 0, list[str]()

    def pick(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        for prediction in predictions:
            self.count += 1
            if prediction.error is not None:
                self.unreadable.append(prediction.error)
            yield prediction._replace(labels=[label for label in prediction.labels if label[1] >= self.threshold])


def _number_done(rows: Rows, paths: Sequence[Path | str]) -> int:
    """How many images have been written already, which must be the first of those asked for."""
    if len(rows.names) > len(paths):
        raise UserError(
            f"{len(rows.names):,} images were written, and now there are {len(paths):,}: choose another file."
        )
    for number, (old, path) in enumerate(zip(rows.names, map(str, paths), strict=False), start=1):
        if old not in (path, as_text(path)):
            raise UserError(
                f"What was written is of other images: image {number:,} was {old}, now it is {path}. Give the same "
                "images, or choose another file."
            )
    return len(rows.names)


def _write(rows: Rows, predictions: Iterable[Prediction], *, num_images: int, num_done: int) -> None:
    display, since = Display(stderr=True), time.monotonic()
    if num_done:
        display.say(f"{num_done:,} of {num_images:,} images are written already")
    try:
        with display.steps("predicting", num_images, done=num_done) as bar:
            for prediction in predictions:
                rows.add(prediction)
                bar.advance()
    finally:
        rows.close()
    seconds, count = time.monotonic() - since, num_images - num_done
    display.say(f"{count:,} images in {format_duration(seconds)}, {count / seconds:,.0f} a second")


def _print_json(predictions: Iterable[Prediction]) -> None:
    """Prints a list, an object after the other, so that it can be read while it grows."""
    separator = "["
    for prediction in predictions:
        print(f"{separator}\n{textwrap.indent(json_text(as_json(prediction)), '  ')}", end="", flush=True)
        separator = ","
    print("[]" if separator == "[" else "\n]")


def _print_lines(predictions: Iterable[Prediction], *, top_k: int, is_only_one: bool) -> None:
    for prediction in predictions:
        if prediction.error is not None:
            continue
        lines = [f"{probability:8.1%}  {label}" for label, probability in prediction.labels]
        if is_only_one:
            print("\n".join([prediction.name, *lines]))
        else:
            print(f"{prediction.name}{', '.join(lines[:top_k])}", flush=True)  # at once: a long list can be watched
