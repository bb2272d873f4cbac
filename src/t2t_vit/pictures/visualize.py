"""The command `visualize`: what networks see in images, as PNG files, numbers, and one page."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2t_vit.data.loading import Batch
from t2t_vit.errors import UserError
from t2t_vit.inference.inputs import find_images, image_set
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.insight.components import colour_tokens
from t2t_vit.insight.config import VisualizeConfig
from t2t_vit.insight.examination import Examination, Plan, evenly_spaced, examine, make_plan
from t2t_vit.insight.faithfulness import Faithfulness, measure_faithfulness
from t2t_vit.insight.features import LEAST_SHARE, LayerHealth, layer_health
from t2t_vit.insight.relevance import METHODS, reasons_against
from t2t_vit.models.factory import create_model
from t2t_vit.models.preprocessing import data_config_of
from t2t_vit.models.t2t_vit import T2TViT
from t2t_vit.pictures.html import render
from t2t_vit.pictures.layers import CHARTS, layers_figure, layers_svg
from t2t_vit.pictures.panels import (
    Panel,
    attention_panel,
    component_panel,
    feature_panel,
    norm_panel,
    overview_panel,
    relevance_panel,
    save_numbers,
    token_panel,
)
from t2t_vit.runtime.console import Display, new_table, print_table
from t2t_vit.runtime.files import write_csv, write_errors_told, write_text

PAGE, LAYERS, SCORES = "index.html", "layers.csv", "faithfulness.csv"
TOGETHER = 10**9


@dataclass(frozen=True)
class Subject:
    """A network to look into, and what to look at in it."""

    name: str
    predictor: Predictor
    plan: Plan


@dataclass(frozen=True)
class Section:
    """What a page shows of an image in a network, or of all images.

    Attributes:
        place: the image's number, by which networks stand side by side; TOGETHER for all images.
    """

    place: int
    title: str
    about: str
    panels: Sequence[Panel]


@dataclass
class Story:
    """What has been found so far."""

    sections: list[Section] = field(default_factory=list)
    layers: dict[str, list[LayerHealth]] = field(default_factory=dict)
    scores: list[Faithfulness] = field(default_factory=list)
    unreadable: dict[str, None] = field(default_factory=dict)  # in their order


def visualize(config: VisualizeConfig) -> None:
    """`t2t-vit visualize`: writes pictures, numbers and a page of them.

    Raises:
        UserError: a network cannot be made, or has not what was asked for; or images are unreadable, named, after all
            others were shown.
    """
    paths = _chosen(find_images(config.images), config.max_images)
    subjects = _subjects(config)
    output = Path(config.output or f"runs/visualize-{_file_name(Path(str(paths[0])).stem)}")
    with write_errors_told(output):
        output.mkdir(parents=True, exist_ok=True)
    story, display = Story(), Display(stderr=True)
    for subject in subjects:
        _look(subject, paths, config, output, story, display)
    if story.layers:
        write_csv(output / LAYERS, [row for rows in story.layers.values() for row in rows])
        layers_figure(story.layers, output / "layers.png")
        if story.scores:
            write_csv(output / SCORES, story.scores)
            print_scores(story.scores)
        write_text(output / PAGE, _page(subjects, story))
        print(f"Page:     {output / PAGE}", f"Pictures: {output}/*.png", f"Numbers:  {output}/*.csv, *.npz", sep="\n")
    if story.unreadable:
        raise UserError(
            f"{len(story.unreadable)} of {len(paths)} images could not be read: {'; '.join(story.unreadable)}."
        )


def _chosen(paths: Sequence[Path | str], count: int) -> Sequence[Path | str]:
    """So many of the paths, evenly spaced."""
    if len(paths) <= count:
        return paths
    print(f"{count} of {len(paths):,} images are shown; --max-images shows more.")
    return [paths[place] for place in evenly_spaced(len(paths), count)]


def _look(
    subject: Subject,
    paths: Sequence[Path | str],
    config: VisualizeConfig,
    output: Path,
    story: Story,
    display: Display,
) -> None:
    """Draws and writes what one network sees in the images, and adds it to the story."""
    found: dict[str, Examination] = {}
    batches: list[Tensor] = []
    with display.steps(subject.name, len(paths)) as steps:
        for batch in _load(subject.predictor, paths):
            story.unreadable |= dict.fromkeys(batch.unreadable)
            if len(batch.images):
                number, name = len(found) + 1, Path(str(paths[int(batch.indices[0])])).name
                one = _examine(subject, batch.images)
                story.sections.append(_section(subject, one, name, config, output, number=number))
                found[f"{number} {name}"] = replace(one, features={})  # drawn, and large
                batches.append(batch.images)
            steps.advance()
    if not found:
        return
    story.layers[subject.name] = [
        layer_health(subject.name, layer, [one.statistics[layer] for one in found.values()])
        for layer in subject.plan.measured
    ]
    story.sections.append(_together(subject, found, output))
    if config.faithfulness:
        story.scores += _scores(subject, batches, next(iter(found.values())).relevance, display)


def _subjects(config: VisualizeConfig) -> list[Subject]:
    """The networks, each with what to look at; whatever is wrong with one is told before the first image is read."""
    predictors: dict[str, Predictor] = {}
    for path in config.checkpoint:
        predictor = Predictor(path, device=config.device, background=config.background, img_size=config.img_size)
        predictors[_unused(str(predictor.checkpoint.model or type(predictor.network).__name__), predictors)] = predictor
    for name in config.model:
        network = _create(name, config)
        known = data_config_of(network, img_size=config.img_size)
        predictors[_unused(name, predictors)] = Predictor(
            network.eval(), device=config.device, background=config.background, data_config=known
        )
    subjects = []
    for name, predictor in predictors.items():
        plan = make_plan(
            predictor, layers=config.layers, methods=config.methods, label=config.label, pixel=config.pixel
        )
        subjects.append(Subject(name, predictor, plan))
    if config.methods:
        against = [reasons_against(subject.predictor.network, config.methods) for subject in subjects]
        if all(len(reasons) == len(set(config.methods)) for reasons in against):
            raise UserError(" ".join(dict.fromkeys(reason for reasons in against for reason in reasons.values())))
    return subjects


def _unused(name: str, used: Collection[str]) -> str:
    """The name, with a number behind it if it is used already."""
    numbered = (f"{name}-{number}" for number in count(2))
    return name if name not in used else next(other for other in numbered if other not in used)


def _create(name: str, config: VisualizeConfig) -> nn.Module:
    """A network by its name, with its released weights if these are asked for."""
    try:
        network = create_model(name, pretrained=config.pretrained, img_size=config.img_size)
    except UserError:
        raise
    except Exception as error:
        advice = " Give --checkpoint, or --no-pretrained for random weights." if config.pretrained else ""
        raise UserError(f"{name} could not be made: {error}.{advice}") from error
    if network.num_classes == 0:
        raise UserError(
            f"{name} has no classifier, whose answer could be explained: give --checkpoint of one that has."
        )
    return network


def _load(predictor: Predictor, paths: Sequence[Any]) -> Iterator[Batch]:
    """The images one by one, as the network gets them before they are normalised."""
    yield from evaluation_loader(
        image_set(paths), predictor.data_config, batch_size=1, machine=predictor.machine, workers=0
    )


def _examine(subject: Subject, images: Tensor) -> Examination:
    """`examine`; where a network of timm is built otherwise than is known here, a `UserError` says so."""
    try:
        return examine(subject.predictor, images, subject.plan)
    except UserError:
        raise
    except Exception as error:
        if isinstance(subject.predictor.network, T2TViT):
            raise
        height, width = subject.predictor.data_config["input_size"][1:]
        raise UserError(
            f"{subject.name} at {width} x {height} pixels is built otherwise than visualize knows, or cannot take this "
            f"size: {type(error).__name__}: {error}"
        ) from error


def _section(
    subject: Subject, found: Examination, image: str, config: VisualizeConfig, output: Path, *, number: int
) -> Section:
    """Draws what was found of one image, and writes it."""
    stem = f"{number:02}-{_file_name(image)}-{_file_name(subject.name)}"
    panels = [overview_panel(found, f"{stem}-overview"), relevance_panel(found, f"{stem}-relevance")]
    if found.fields:
        panels.append(token_panel(found, f"{stem}-tokens"))
    if found.attention:
        panels.append(attention_panel(found, f"{stem}-attention"))
    panels += [feature_panel(found, config.channels, f"{stem}-features"), norm_panel(found, f"{stem}-norms")]
    for panel in panels:
        panel.save(output)
    save_numbers(found, output / f"{stem}.npz")
    height, width = found.image.shape[:2]
    about = f"{found.answer[0]} with {100 * found.answer[1]:.1f} %; {width} x {height} pixels."
    return Section(number, f"{image} in {subject.name}", " ".join([about, *found.reasons.values()]), panels)


def _together(subject: Subject, found: Mapping[str, Examination], output: Path) -> Section:
    """Draws what was found over all images, by their names."""
    coloured, shares = colour_tokens([one.last for one in found.values()])
    images = {name: one.image for name, one in found.items()}
    grid = next(iter(found.values())).statistics[subject.plan.measured[-1]].grid
    panel = component_panel(images, coloured, shares, grid, f"all-{_file_name(subject.name)}-colours")
    panel.save(output)
    return Section(TOGETHER, f"All images in {subject.name}", "", [panel])


def _scores(
    subject: Subject, batches: Sequence[Tensor], fitting: Iterable[str], display: Display
) -> list[Faithfulness]:
    """Measures the methods that fit the network, for what it says of the images."""
    predictor = subject.predictor
    images = torch.cat([predictor.normalize(batch) for batch in batches])
    with torch.no_grad():
        labels = predictor.network(images).argmax(dim=1)
    if subject.plan.label is not None:
        labels = torch.full_like(labels, subject.plan.label)
    methods = {name: METHODS[name].run for name in fitting}
    with display.steps(f"faithfulness of {subject.name}", len(methods) + 1) as steps:
        return measure_faithfulness(
            predictor.network, images, labels, methods, model_name=subject.name, each=steps.advance
        )


def print_scores(scores: Sequence[Faithfulness]) -> None:
    """Prints how far each method can be believed."""
    table = new_table("Network", "Method", "Deletion", "Insertion", "SaCo", "Random weights", num_words=2)
    for row in scores:
        table.add_row(row.model, row.method, *_cells(row))
    print_table(table)
    print(
        f"Means over {scores[0].images} images. Deletion: low is good. Insertion, SaCo: high. Random weights: rank "
        "correlation with their map, near 0 is good."
    )


def _cells(row: Faithfulness) -> list[str]:
    """A row's scores with their intervals."""
    cells = [
        f"{mean:.3f}" if low is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"
        for mean, low, high in (
            (row.deletion, row.deletion_low, row.deletion_high),
            (row.insertion, row.insertion_low, row.insertion_high),
            (row.saco, row.saco_low, row.saco_high),
        )
    ]
    return [*cells, "" if row.after_randomising is None else f"{row.after_randomising:.2f}"]


def _page(subjects: Sequence[Subject], story: Story) -> str:
    """The page; networks stand side by side for each image."""
    shown = [
        {
            "title": section.title,
            "about": section.about,
            "panels": [
                {"title": panel.title, "about": panel.about, "columns": panel.columns, "tiles": panel.for_page()}
                for panel in section.panels
            ],
        }
        for section in sorted(story.sections, key=lambda section: section.place)
    ]
    names = " and ".join(subject.name for subject in subjects)
    return render(
        "visualize.html.j2",
        title=f"What {names} see" + "s" * (len(subjects) == 1),
        sections=shown,
        charts={title: layers_svg(title, story.layers) for title in CHARTS},
        layers=story.layers,
        least_percent=100 * LEAST_SHARE,
        scores=[(row.model, row.method, *_cells(row)) for row in story.scores],
    )


def _file_name(text: str) -> str:
    """Text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("._")[:60] or "image"
