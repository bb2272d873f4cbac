"""What a finished run came to, as one HTML file: it needs no network, no script and no other file."""

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps

import t2t_vit
from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.loading import NormalizedLoader
from t2t_vit.models.weights import build_model
from t2t_vit.pictures.charts import accuracy_chart, loss_chart
from t2t_vit.runtime.console import Display, format_duration
from t2t_vit.runtime.files import write_text
from t2t_vit.runtime.machine import Machine
from t2t_vit.runtime.stopwatch import shares_in_words

MAX_CLASSES = 200  # up to here there is a confusion matrix, and every class is listed
MAX_COUNTED_CLASSES, MAX_NAMED_CLASSES = 20, 50  # of a matrix whose cells show numbers, whose rows show names
NUM_MISTAKES, NUM_PAIRS, NUM_EXTREMES = 24, 10, 20
NAME_CHARACTERS = 18  # of a class name that fit beside the matrix
THUMBNAIL_PX = 144


class Prediction(NamedTuple):
    """What the network says of one image; `probability` is that of the class it predicts."""

    image_index: int
    label: int
    predicted: int
    probability: float
    in_top5: bool

    @property
    def is_right(self) -> bool:
        return self.predicted == self.label


@dataclass(frozen=True)
class RunSummary:
    """What the report is about.

    Attributes:
        title: the heading.
        about: lines of text below it.
        metrics: rows of metrics.jsonl.
        best_epoch: the one whose weights predict, from 0.
        images: those that were predicted.
        class_names: label to name.
    """

    title: str
    about: str
    metrics: Sequence[Mapping[str, Any]]
    best_epoch: int
    images: ImageSet
    class_names: Sequence[str]


def write_report(
    path: Path,
    checkpoint: Path,
    loader: NormalizedLoader,
    summary: RunSummary,
    *,
    machine: Machine,
    display: Display,
) -> None:
    """Writes the report of a run. The run is safe by then: what goes wrong here is told, and nothing is raised.

    Args:
        path: the HTML file.
        checkpoint: the weights to look at.
        loader: batches of the images in the summary; of several processes, each has a part, and all call this.
        summary: what is known without the weights.
        machine: where and in which precision.
        display: shows the progress and tells what goes wrong.
    """
    try:
        mine: list[Prediction] | str = predict(checkpoint, loader, machine, display)
    except Exception as error:  # the other processes wait in gather
        mine = _describe(error)
    parts = machine.gather(mine)
    if not machine.is_main_process:
        return
    failures = [part for part in parts if isinstance(part, str)]
    if not failures:
        try:
            write_text(path, page(summary, sorted(prediction for part in parts for prediction in part)))
        except Exception as error:
            failures = [_describe(error)]
    display.say(f"warning: {path} is not written: {failures[0]}" if failures else f"report: {path}")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@torch.inference_mode()
def predict(checkpoint: Path, loader: NormalizedLoader, machine: Machine, display: Display) -> list[Prediction]:
    """What the network of a checkpoint says of this process's images, those that can be read."""
    model = build_model(checkpoint)[0].to(machine.device).eval()
    predictions: list[Prediction] = []
    with display.steps("predicting for the report", len(loader)) as steps:
        for batch in loader:
            if len(batch.images):
                with machine.autocast():
                    logits = model(batch.images)
                likeliest = logits.float().softmax(dim=-1).cpu().topk(min(5, logits.shape[-1]))  # (B, 5)
                in_top5 = (likeliest.indices == batch.targets[:, None]).any(dim=-1)
                columns = (batch.indices, batch.targets, likeliest.indices[:, 0], likeliest.values[:, 0], in_top5)
                predictions += map(Prediction, *(column.tolist() for column in columns))
            steps.advance()
    return predictions


def page(summary: RunSummary, predictions: Sequence[Prediction]) -> str:
    """The report as HTML."""
    sections = [_head(summary, predictions), _curves(summary.metrics)]
    if predictions:
        sections.append(_mistakes(summary, predictions))
        sections.append(_confusions(summary, predictions))
        sections.append(_classes(summary, predictions))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # A browser that obeys this could not reach the network if it wanted to.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f'<link rel="icon" href="data:,">\n<title>{_text(summary.title)}</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{''.join(sections)}"
        f"<footer>Predictions of best.pt. t2t-vit {t2t_vit.__version__}</footer>\n</main>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    """Text as HTML shows it. File names may hold bytes that are no text."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def _section(title: str, note: str, content: str) -> str:
    return f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>\n{content}</section>\n'


def _head(summary: RunSummary, predictions: Sequence[Prediction]) -> str:
    last = summary.metrics[-1]
    tiles = [
        ("best epoch", f"{summary.best_epoch + 1}", f"of {len(summary.metrics)}"),
        ("time", format_duration(last["elapsed_s"]), "evaluations included"),
        ("images a second", f"{last['images_per_second']:,.0f}", shares_in_words(last)),
    ]
    if predictions and len(summary.class_names) > 5:
        tiles.insert(0, _accuracy_tile("top-5", [prediction.in_top5 for prediction in predictions]))
    if predictions:
        tiles.insert(0, _accuracy_tile("top-1", [prediction.is_right for prediction in predictions]))
    unreadable = len(summary.images) - len(predictions)
    warning = (
        f'<p class="wrong">{unreadable:,} of {len(summary.images):,} images cannot be read and do not count.</p>\n'
    )
    shown = "".join(
        f"<div><dt>{name}</dt><dd><b>{value}</b> <span>{note}</span></dd></div>\n" for name, value, note in tiles
    )
    return (
        f'<header>\n<h1>{_text(summary.title)}</h1>\n<p class="about">{_text(summary.about)}</p>\n'
        f"{warning if unreadable else ''}<dl>\n{shown}</dl>\n</header>\n"
    )


def _accuracy_tile(name: str, right: Sequence[bool]) -> tuple[str, str, str]:
    return name, f"{100 * sum(right) / len(right):.2f} %", f"{len(right) - sum(right):,} of {len(right):,} images wrong"


# Learning curves


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        name: [row[key] for row in metrics]
        for name, key in (("moving average", "ema_top1"), ("last weights", "val_top1"))
        if key in metrics[0]
    }
    if len(columns) == 1:
        columns = {"validation": columns["last weights"]}
    losses = {"training": [row["train_loss"] for row in metrics], "validation": [row["val_loss"] for row in metrics]}
    return _section(
        "Learning curves",
        "A dot marks the best epoch. The height of an accuracy is its error's logarithm. The training loss is that of "
        "augmented images: it may stay above the validation loss.",
        f'<div class="charts">\n{accuracy_chart(columns)}{loss_chart(losses)}</div>\n',
    )


# Mistakes


def _mistakes(summary: RunSummary, predictions: Sequence[Prediction]) -> str:
    wrong = [prediction for prediction in predictions if not prediction.is_right]
    wrong.sort(key=lambda prediction: -prediction.probability)
    shown = [thumbnail for prediction in wrong[:NUM_MISTAKES] if (thumbnail := _thumbnail(summary, prediction))]
    number = f"All {len(wrong)}" if len(shown) == len(wrong) else f"{len(shown)} of {len(wrong):,}"
    note = f"{number} mistakes, the most certain first. Some may be labels that are wrong." if wrong else "No mistake."
    return _section("Most confident mistakes", note, f'<div class="sheet">\n{"".join(shown)}</div>\n' if shown else "")


def _thumbnail(summary: RunSummary, prediction: Prediction) -> str | None:
    """A picture with what was predicted and what is right; None where the image can no longer be read."""
    try:
        image = summary.images.load(prediction.image_index)
    except UnreadableImage:
        return None
    names = summary.class_names
    name = _text(summary.images.names[prediction.image_index])
    predicted, label = _text(names[prediction.predicted]), _text(names[prediction.label])
    percent = f"{100 * prediction.probability:.0f} %"
    small = 2 * min(image.size) < THUMBNAIL_PX
    side = min(*image.size, THUMBNAIL_PX)
    image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return (
        f'<figure><img class="{"pixels" if small else ""}" width="{THUMBNAIL_PX}" height="{THUMBNAIL_PX}" '
        f'src="{_data_uri(image, "PNG" if small else "JPEG")}" '
        f'alt="{name}: taken for {predicted} with {percent}, is {label}">'
        f'<figcaption><b class="wrong">{predicted}</b> {percent.replace(" ", "&nbsp;")}<br>is <b>{label}</b>'
        f'<small title="{name}">{name}</small></figcaption></figure>\n'
    )


def _data_uri(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _confusions(summary: RunSummary, predictions: Sequence[Prediction]) -> str:
    """The confusion matrix, where there are not too many classes, and the pairs that are confused most."""
    names = summary.class_names
    counts = Counter((prediction.label, prediction.predicted) for prediction in predictions)
    pairs = Counter({pair: count for pair, count in counts.items() if pair[0] != pair[1]}).most_common(NUM_PAIRS)
    listed = "".join(
        f"<li><b>{_text(names[label])}</b> taken for <b>{_text(names[predicted])}</b> "
        f"<span>{count:,}&nbsp;&times;</span></li>\n"
        for (label, predicted), count in pairs
    )
    worst = f'<div><h3>Most often confused</h3>\n<ol class="pairs">\n{listed}</ol></div>\n' if pairs else ""
    if len(names) > MAX_CLASSES:
        return _section("Confusions", f"{len(names):,} classes are too many for a matrix.", worst) if pairs else ""
    return _section(
        "Confusion matrix",
        "A row for each class, a column for what its images were taken for.",
        f'<div class="confusions">\n<div class="scroll" tabindex="0">{_matrix(counts, names)}</div>\n{worst}</div>\n',
    )


def _matrix(counts: Mapping[tuple[int, int], int], names: Sequence[str]) -> str:
    """The matrix as SVG, (label, predicted) to number of images; a cell's strength is its share of the row."""
    size = len(names)
    counted, named = size <= MAX_COUNTED_CLASSES, size <= MAX_NAMED_CLASSES
    cell = 34 if counted else 14 if named else max(3, 600 // size)
    size_px = cell * size
    totals: Counter[int] = Counter()
    for (label, _), count in counts.items():
        totals[label] += count
    drawn = [f'<rect class="paper" width="{size_px}" height="{size_px}"/>\n']
    for (label, predicted), count in sorted(counts.items()):
        strength = 0.12 + 0.88 * math.sqrt(count / totals[label])  # the eye sees few better than none
        drawn.append(
            f'<g transform="translate({cell * predicted} {cell * label})">'
            f"<title>{_text(names[label])} taken for {_text(names[predicted])}: {count:,}</title>"
            f'<rect class="{"right" if label == predicted else "mistake"}" width="{cell - cell // 14}" '
            f'height="{cell - cell // 14}" fill-opacity="{strength:.2f}"/>'
        )
        if counted:
            kind = "strong" if strength > 0.55 else "count"
            drawn.append(f'<text class="{kind}" x="{cell / 2 - 1}" y="{cell / 2 + 3}">{count}</text>')
        drawn.append("</g>\n")
    labels = [_cut(name) for name in names] if named else []
    longest = max(map(len, labels), default=0)
    upright = counted and longest <= 3
    left = 12 + 7 * longest if named else 0
    above = 22 if upright else left
    for place, shown in enumerate(map(_text, labels)):
        middle = cell * place + cell / 2
        turned = f'class="start" transform="translate({middle + 4} -6) rotate(-90)"'
        column = f'x="{middle}" y="-8"' if upright else turned
        drawn.append(f'<text class="end" x="-7" y="{middle + 4}">{shown}</text><text {column}>{shown}</text>\n')
    width, height = left + size_px, above + size_px
    return (
        f'<svg class="matrix{" named" if named else ""}" viewBox="{-left} {-above} {width} {height}" '
        f'style="width:{width}px" role="img" aria-label="Confusion matrix of {size} classes">\n{"".join(drawn)}</svg>'
    )


def _cut(name: str) -> str:
    """The name without its middle, where it is long: what tells two names apart is often at the end."""
    half = NAME_CHARACTERS // 2
    return name if len(name) <= NAME_CHARACTERS else f"{name[: half - 1]}…{name[-half:]}"


def _classes(summary: RunSummary, predictions: Sequence[Prediction]) -> str:
    """The accuracy of each class, or of the worst and the best where they are many."""
    totals = Counter(prediction.label for prediction in predictions)
    wrong = Counter(prediction.label for prediction in predictions if not prediction.is_right)
    order = sorted(totals, key=lambda label: (-wrong[label] / totals[label], -totals[label], label))
    lists = {"": order}
    note = "The worst first."
    if len(summary.class_names) > MAX_CLASSES:
        lists = {f"The {NUM_EXTREMES} worst": order[:NUM_EXTREMES], f"The {NUM_EXTREMES} best": order[-NUM_EXTREMES:]}
        note = f"Of {len(summary.class_names):,} classes."
    absent = len(summary.class_names) - len(totals)
    note += f" Without an image here: {absent:,}." if absent else ""
    content = ""
    for heading, labels in lists.items():
        rows = [_class_row(summary.class_names[label], totals[label], wrong[label]) for label in labels]
        content += f"<h3>{heading}</h3>\n" if heading else ""
        content += f'<ol class="classes">\n{"".join(rows)}</ol>\n'
    return _section("Accuracy of each class", note, content)


def _class_row(name: str, total: int, wrong: int) -> str:
    percent = 100 - 100 * wrong / total
    return (
        f'<li><span class="name">{_text(name)}</span><span class="bar"><i style="width:{percent:.1f}%"></i></span>'
        f"<span><b>{percent:.1f} %</b> <small>{total - wrong:,} of {total:,}</small></span></li>\n"
    )


# Blue and orange of Paul Tol's vibrant palette, told apart with every common kind of colour blindness; magenta is kept
# for mistakes, as in the other pictures of runs.
STYLE = """
:root { --paper: #fff; --card: #f6f7f9; --ink: #222; --faint: #686868; --grid: #e4e4e4; --strong: #fff;
  --line0: #07b; --line1: #e73; --wrong: #d6246a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1d2026; --ink: #e8e8e8; --faint: #a0a4ab;
  --grid: #33373f; --strong: #101216; --line0: #4db1ee; --line1: #f59a5e; --wrong: #ff6d9e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 40px; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 1.25rem; margin: 44px 0 2px; }
h3 { font-size: 1rem; margin: 18px 0 8px; }
.about, .note, footer, small, dd span, .pairs span { color: var(--faint); }
.about { white-space: pre-line; margin: 0; font-size: .9rem; }
.note { margin: 0 0 16px; font-size: .9rem; }
.wrong { color: var(--wrong); }
footer { margin-top: 48px; font-size: .85rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 22px 0 0; }
dl div { background: var(--card); border-radius: 10px; padding: 12px 16px; }
dt { font-size: .85rem; color: var(--faint); }
dd { margin: 0; }
dd b { font-size: 1.7rem; line-height: 1.25; display: block; }
dd span { font-size: .85rem; }
figure { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 28px; }
.charts figcaption { font-weight: 600; }
.legend { list-style: none; margin: 2px 0 8px; padding: 0; font-size: .85rem; color: var(--faint); }
.legend li::before { content: ""; display: inline-block; width: 16px; height: 4px; border-radius: 2px;
  margin: 0 8px 3px 0; background: var(--line); }
.legend b { color: var(--ink); }
.line0 { --line: var(--line0); }
.line1 { --line: var(--line1); }
svg { display: block; max-width: 100%; height: auto; }
.charts svg { width: 100%; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; }
@media (max-width: 500px) { .charts text { font-size: 15px; } }
.grid { stroke: var(--grid); }
polyline { fill: none; stroke: var(--line); stroke-width: 2.5; stroke-linecap: round; stroke-linejoin: round; }
circle { fill: var(--line); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 18px 12px; }
@media (max-width: 500px) { .sheet { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
.sheet img { display: block; width: 100%; height: auto; aspect-ratio: 1; border-radius: 8px; background: var(--card); }
.sheet figcaption { font-size: .875rem; line-height: 1.35; margin-top: 6px; }
.sheet small { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.pixels { image-rendering: pixelated; }
.confusions { display: flex; flex-wrap: wrap; gap: 12px 44px; }
.scroll { overflow-x: auto; max-width: 100%; }
.named { max-width: none; }
.matrix text { text-anchor: middle; }
.matrix .end { text-anchor: end; }
.matrix .start { text-anchor: start; }
.matrix .paper { fill: var(--card); }
.right { fill: var(--line0); }
.mistake { fill: var(--wrong); }
svg .count { fill: var(--ink); }
svg .strong { fill: var(--strong); font-weight: 600; }
.pairs { margin: 0; padding-left: 1.6em; font-size: .95rem; }
.pairs span { margin-left: 6px; }
.classes { list-style: none; margin: 0; padding: 0; font-size: .9rem; display: grid; gap: 7px 36px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
.classes li { display: grid; grid-template-columns: minmax(6em, 1fr) minmax(60px, 1.4fr) 8.5em;
  gap: 10px; align-items: center; }
.bar { background: var(--card); border-radius: 4px; height: 10px; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--line0); border-radius: 4px; }
"""
