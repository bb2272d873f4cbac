"""Every format of a network side by side: agreement with float32, size, images per second, and the official code.

    pip install '.[onnx,openvino]'
    git clone https://github.com/yitu-opensource/T2T-ViT
    python benchmarks/formats.py --official T2T-ViT                    # t2t_vit_7, t2t_vit_14, t2t_vit_t_14 at 224 pixels
    python benchmarks/formats.py --checkpoint runs/FOLDER --images FOLDER/val      # a network of yours, at its size

No released weights come with this repository, so the models of the paper have random weights here. Their speed is that of any
weights. Agreement and differences are told of a checkpoint alone: random features hardly differ from image to image, and
a head that tells them apart magnifies each rounding.

Speeds are medians of rounds in which all contenders of a model take turns, each in a process of its own. "ms to a label" is
the time of `Predictor` on one JPEG of 256 x 256 pixels, from its bytes, all in one process in turn.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from official import official_contender
from PIL import Image
from sklearn.datasets import load_sample_image

from t2t_vit.deploy.export import source_of
from t2t_vit.deploy.fidelity import compare, normalised_images
from t2t_vit.deploy.formats import WRITERS, Source
from t2t_vit.inference.exported import exported_file
from t2t_vit.inference.inputs import find_images
from t2t_vit.inference.predictor import Predictor
from t2t_vit.models.factory import create_model
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv
from t2t_vit.runtime.hardware import hardware_name
from t2t_vit.speed.contenders import Contender, exported_contender, model_contender
from t2t_vit.speed.turns import measure

FORMATS = ("onnx", "onnx-int8", "openvino", "openvino-int8", "aotinductor")
ROUNDS, SECONDS = 3, 1.0
LABELS_OF_A_ROUND = 20


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to run a network.

    Attributes:
        name: as the table shows it.
        contender: is timed.
        folder: of the export; None for eager and official code.
        amp: whether it is opened for half precision.
        is_code: whether opening it runs code, which is ours.
    """

    name: str
    contender: Contender
    folder: Path | None = None
    amp: bool = False
    is_code: bool = False


def write_formats(source: Source, formats: Sequence[str], folder: Path) -> None:
    """Exports a network in each format."""
    for format in formats:
        (folder / format).mkdir(parents=True)
        WRITERS[format](source, folder / format)


def ways_of(
    model: str, size: int, formats: Sequence[str], folder: Path, official: str | None, batch_size: int
) -> list[Way]:
    """Eager, compiled, exported and official ways to run a network."""
    common = {"mode": "infer", "batch_size": batch_size}
    ours = {
        precision: model_contender(model, size, precision=precision, **common) for precision in ("float32", "bfloat16")
    }
    ways = [Way(f"eager {precision}", one) for precision, one in ours.items()]
    ways.append(Way("compiled bfloat16", dataclasses.replace(ours["bfloat16"], compile_mode="default")))
    for format in formats:
        for precision in ("float32", "bfloat16") if format.startswith("openvino") else ("float32",):
            file, is_code = exported_file(folder / format), format == "aotinductor"
            timed = exported_contender(file, precision=precision, trust_code=is_code, **common)
            ways.append(
                Way(f"{format} {precision}", timed, folder / format, amp=precision != "float32", is_code=is_code)
            )
    if official:
        ways += [Way(f"official {precision}", official_contender(official, one)) for precision, one in ours.items()]
    return ways


def label_latencies(predictors: Sequence[Predictor], image: Path) -> list[float]:
    """Milliseconds from the bytes of a file to the label of each, medians of all calls of rounds in turn."""
    taken: list[list[float]] = [[] for _ in predictors]
    for _ in range(2 * ROUNDS):
        for predictor, times in zip(predictors, taken, strict=True):
            predictor(image, 1)
            for _ in range(LABELS_OF_A_ROUND):
                start = time.perf_counter()
                predictor(image, 1)
                times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]


def sample_image(folder: Path) -> Path:
    """A JPEG of 256 x 256 pixels, from a photograph of scikit-learn."""
    Image.fromarray(load_sample_image("china.jpg")[100:356, 100:356]).save(folder / "image.jpg", quality=90)
    return folder / "image.jpg"


def study(
    model: str,
    predictor: Predictor,
    images: Sequence[Path],
    formats: Sequence[str],
    folder: Path,
    *,
    official: str | None,
    batch_size: int,
) -> list[dict[str, object]]:
    """The rows of a network: what each way costs and, given images, how near it is."""
    size = predictor.data_config["input_size"]
    if images:
        calibration = [one[None].numpy() for one in normalised_images(predictor, images[::2][:300])]
    else:
        calibration = list(np.random.default_rng(0).normal(size=(16, 1, *size)).astype(np.float32))
    write_formats(source_of(predictor, calibration=calibration), formats, folder)
    ways = ways_of(model, size[-1], formats, folder, official, batch_size)
    outcomes = measure([way.contender for way in ways], device=torch.device("cpu"), rounds=ROUNDS, seconds=SECONDS)
    opened = {
        way.name: predictor
        if way.folder is None
        else Predictor(way.folder, device="cpu", amp=way.amp, trust_code=way.is_code)
        for way in ways
        if way.folder is not None or way.name == "eager float32"
    }
    labels_ms = dict(zip(opened, label_latencies([*opened.values()], sample_image(folder)), strict=True))
    machine = {"hardware": hardware_name(torch.device("cpu")), "threads": torch.get_num_threads()}
    rows: list[dict[str, object]] = []
    for way, outcome in zip(ways, outcomes, strict=True):
        row: dict[str, object] = {"model": model, "way": way.name, "batch_size": batch_size}
        row |= {"images_per_second": outcome.images_per_second, "error": outcome.error, **machine}
        if way.folder is not None:
            row["megabytes"] = sum(file.stat().st_size for file in way.folder.iterdir()) / 1e6
        if way.name in labels_ms:
            row["label_ms"] = labels_ms[way.name]
        if way.folder is not None and images:
            found = compare(predictor, opened[way.name], images[1::2])
            row |= {
                "agreement_percent": found.agreement_percent,
                "largest_difference": found.largest_difference,
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=["t2t_vit_7", "t2t_vit_14", "t2t_vit_t_14"]
    )
    parser.add_argument("--img-size", type=int, help="of those models, instead of their own")
    parser.add_argument("--checkpoint", type=Path, help="a network of yours, instead of those models")
    parser.add_argument("--images", nargs="+", help="to compare and calibrate on, with --checkpoint")
    parser.add_argument("--formats", type=lambda text: text.split(","), default=FORMATS)
    parser.add_argument("--official", help="a copy of the official repository")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--csv", type=Path)
    words = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs: list[tuple[str, Predictor, list[Path]]] = []
        if words.checkpoint:
            if words.img_size:
                parser.error("--img-size is of --models, and --checkpoint has a size of its own")
            images = [Path(image) for image in find_images(words.images or parser.error("give --images"))]
            predictor = Predictor(words.checkpoint, device="cpu")
            jobs = [(predictor.checkpoint.model or "network", predictor, images)]
        else:
            size = {} if words.img_size is None else {"img_size": words.img_size}
            jobs = [(model, Predictor(create_model(model, **size).eval(), device="cpu"), []) for model in words.models]
        for model, predictor, images in jobs:
            rows += study(
                model,
                predictor,
                images,
                words.formats,
                folder / model,
                official=words.official,
                batch_size=words.batch_size,
            )
            if words.csv:
                write_csv(words.csv, rows)
    table = new_table("model", "way", "images/s", "agreement, %", "difference", "MB", "ms to a label", num_words=2)
    for row in rows:
        numbers = [
            row.get(key)
            for key in ("images_per_second", "agreement_percent", "largest_difference", "megabytes", "label_ms")
        ]
        shown = [
            "" if value is None else format(value, how)
            for value, how in zip(numbers, (".1f", ".2f", ".1e", ".1f", ".1f"), strict=True)
        ]
        table.add_row(str(row["model"]), str(row["way"]), *shown)
    print_table(table)
    print(
        f"{rows[0]['hardware']}, {rows[0]['threads']} threads, torch {torch.__version__}, batches of {words.batch_size}"
    )


if __name__ == "__main__":
    main()
