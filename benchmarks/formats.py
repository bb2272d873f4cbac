"""Every format of a network side by side: agreement with float32, size, images per second, and the official code.

    pip install '.[onnx,openvino]'
    git clone https://github.com/yitu-opensource/T2T-ViT
    python benchmarks/formats.py --official T2T-ViT                    # t2t_vit_7, t2t_vit_14, t2t_vit_t_14 at 224 pixels
    python benchmarks/formats.py --checkpoint runs/FOLDER --images FOLDER/val      # a network of yours, at its size

No released weights come with this repository. So a network of random weights gets a head that is fitted to tell
scikit-learn's digits, enlarged, by its features: 300 digits calibrate 8 bits and fit the head; agreement and differences
are of 300 others, from the file to the label. Its speed is that of any weights. Of its 8 bits agreement says nothing:
random features hardly differ from image to image, and the head that tells them apart magnifies each rounding (48 % where a
trained network agrees on all images). That takes --checkpoint.

Speeds are medians of rounds in which all contenders of a model take turns, each in a process of its own.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from official import official_contender
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from t2t_vit.deploy.config import ExportConfig
from t2t_vit.deploy.export import export
from t2t_vit.deploy.fidelity import compare, normalised_images
from t2t_vit.inference.exported import exported_file
from t2t_vit.inference.inputs import find_images
from t2t_vit.inference.predictor import Predictor
from t2t_vit.models.factory import create_model
from t2t_vit.options import configure
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv
from t2t_vit.runtime.hardware import hardware_name
from t2t_vit.speed.contenders import Contender, exported_contender, model_contender
from t2t_vit.speed.turns import measure

FORMATS = ("onnx", "onnx-int8", "openvino", "openvino-int8")
ROUNDS, SECONDS = 5, 1.5


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to run a network.

    Attributes:
        name: as the table shows it.
        contender: is timed.
        folder: of the export, and its precision; None for eager and official code.
    """

    name: str
    contender: Contender
    folder: Path | None = None
    amp: bool = False


def write_digits(folder: Path) -> tuple[list[Path], np.ndarray]:
    """600 digits as files, and their labels."""
    digits = load_digits()
    folder.mkdir(parents=True)
    for row, image in enumerate(digits.images[:600]):
        Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(folder / f"{row:03}.png")
    return sorted(folder.iterdir()), digits.target[:600]


def write_network(model: str, path: Path, images: Sequence[Path], labels: np.ndarray) -> None:
    """A checkpoint of random weights with a head that is fitted to the first 300 digits."""
    torch.manual_seed(0)
    network = create_model(model, num_classes=10).eval()
    size = {"input_size": [3, 224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    data_config = {**size, "crop_pct": 1.0, "interpolation": "bicubic", "background": "white"}
    predictor = Predictor(network, device="cpu", data_config=data_config)
    features = _features(predictor, images[:300])
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    fitted = LogisticRegression(max_iter=300).fit((features - mean) / deviation, labels[:300])
    weight = fitted.coef_ / deviation
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(weight))
        network.head.bias.copy_(torch.from_numpy(fitted.intercept_ - weight @ mean))
    head = {"format": "t2t_vit", "version": 1, "model": model, "model_args": {"num_classes": 10}}
    about = {"class_names": [str(digit) for digit in range(10)], "data_config": data_config}
    torch.save({**head, **about, "state_dict": network.state_dict()}, path)


@torch.inference_mode()
def _features(predictor: Predictor, images: Sequence[Path]) -> np.ndarray:
    network = predictor.network
    batches = normalised_images(predictor, images).split(20)
    return torch.cat([network.forward_head(network.forward_features(x), pre_logits=True) for x in batches]).numpy()


def ways_of(checkpoint: Path, model: str, size: int, folder: Path, official: str | None, batch_size: int) -> list[Way]:
    """Eager, compiled, exported and official ways to run a network."""
    common = {"mode": "infer", "batch_size": batch_size}
    ours = {
        precision: model_contender(model, size, precision=precision, **common) for precision in ("float32", "bfloat16")
    }
    ways = [Way(f"eager {precision}", one) for precision, one in ours.items()]
    ways.append(Way("compiled bfloat16", dataclasses.replace(ours["bfloat16"], compile_mode="default")))
    for format in FORMATS:
        for precision in ("float32", "bfloat16") if format.startswith("openvino") else ("float32",):
            timed = exported_contender(exported_file(folder / format), precision=precision, **common)
            ways.append(Way(f"{format} {precision}", timed, folder / format, amp=precision != "float32"))
    if official:
        ways += [Way(f"official {precision}", official_contender(official, one)) for precision, one in ours.items()]
    return ways


def study(
    model: str, checkpoint: Path, images: Sequence[Path], folder: Path, *, official: str | None, batch_size: int
) -> list[dict[str, object]]:
    """The rows of a network: what each way costs, and how near it is."""
    for format in FORMATS:
        calibrate = {"calibrate": (str(images[0].parent),)} if format.endswith("int8") else {}
        config = configure(
            ExportConfig, checkpoint=str(checkpoint), format=format, output=str(folder / format), least_agreement=0.0,
            images=tuple(map(str, images)), **calibrate,
        )  # fmt: skip
        export(config)
    original = Predictor(checkpoint, device="cpu")
    ways = ways_of(checkpoint, model, original.data_config["input_size"][-1], folder, official, batch_size)
    outcomes = measure([way.contender for way in ways], device=torch.device("cpu"), rounds=ROUNDS, seconds=SECONDS)
    rows: list[dict[str, object]] = []
    for way, outcome in zip(ways, outcomes, strict=True):
        row: dict[str, object] = {
            "model": model,
            "way": way.name,
            "images_per_second": outcome.images_per_second,
            "batch_size": batch_size,
        }
        if way.folder is not None:
            found = compare(original, Predictor(way.folder, device="cpu", amp=way.amp), images)
            size = sum(file.stat().st_size for file in way.folder.iterdir()) / 1e6
            row |= {
                "agreement_percent": found.agreement_percent, "largest_difference": found.largest_difference,
                "megabytes": size, "latency_ms": found.latency_ms, "eager_latency_ms": found.original_latency_ms,
            }  # fmt: skip
        rows.append(
            {
                **row,
                "error": outcome.error,
                "hardware": hardware_name(torch.device("cpu")),
                "threads": torch.get_num_threads(),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=["t2t_vit_7", "t2t_vit_14", "t2t_vit_t_14"]
    )
    parser.add_argument("--checkpoint", type=Path, help="a network of yours, instead of those models")
    parser.add_argument("--images", nargs="+", help="to compare and calibrate on, with --checkpoint")
    parser.add_argument("--official", help="a copy of the official repository")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--csv", type=Path)
    words = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = []
        if words.checkpoint:
            images = [Path(image) for image in find_images(words.images or parser.error("give --images"))]
            jobs = [(Predictor(words.checkpoint, device="cpu").checkpoint.model or "network", words.checkpoint, images)]
        else:
            digits, labels = write_digits(folder / "digits")
            for model in words.models:
                path = folder / f"{model}.pt"
                write_network(model, path, digits, labels)
                jobs.append((model, path, digits[300:]))
        for model, path, images in jobs:
            rows += study(
                model, path, images, folder / f"{model}-exports", official=words.official, batch_size=words.batch_size
            )
            if words.csv:
                write_csv(words.csv, rows)
    table = new_table("model", "way", "images/s", "agreement, %", "difference", "MB", "ms, one image", num_words=2)
    for row in rows:
        numbers = [
            row.get(key)
            for key in ("images_per_second", "agreement_percent", "largest_difference", "megabytes", "latency_ms")
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
