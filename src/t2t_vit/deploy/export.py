"""`t2t-vit export`: writes a network for other programs, opens what was written, and compares it with the original."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from timm.layers import to_2tuple
from torch import nn

import t2t_vit
from t2t_vit.deploy.card import write_card
from t2t_vit.deploy.config import ExportConfig
from t2t_vit.deploy.fidelity import Fidelity, compare, normalised_images
from t2t_vit.deploy.formats import PT2, WRITERS, Source
from t2t_vit.deploy.hub import push
from t2t_vit.errors import UserError
from t2t_vit.inference.exported import ExportedNetwork
from t2t_vit.inference.inputs import find_images
from t2t_vit.inference.predictor import ABOUT, Predictor
from t2t_vit.models.checkpoint_formats import FORMAT, VERSION
from t2t_vit.models.t2t_vit import T2TViT
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.files import plain, write_errors_told

NUM_CALIBRATED, NUM_COMPARED = 300, 1000
LARGEST_DIFFERENCE = 1e-3
"""Of a probability, in formats that keep float32: rounding in another order gives a hundredth of it."""


def export(config: ExportConfig) -> None:
    """Writes a network, checks it, and prints what the check found.

    Raises:
        UserError: the checkpoint or the images cannot be used, a package is missing, or what was written does not
            answer as the original does; nothing is left at `output` then.
    """
    display = Display()
    original = _open(config)
    display.say(str(original.checkpoint.report))
    output = Path(config.output).expanduser()
    with _images(config, original) as (images, calibrating), _new_folder(output) as folder:
        calibration: Sequence[np.ndarray] = ()
        if calibrating:
            calibration = [image[None].numpy() for image in normalised_images(original, calibrating)]
            display.say(f"ranges of 8 bits are chosen by {len(calibration):,} images")
        source = source_of(original, any_size=config.any_size, calibration=calibration)
        if config.onnxruntime_web:
            source = dataclasses.replace(source, web_runtime=Path(config.onnxruntime_web).expanduser())
        WRITERS[config.format](source, folder)
        exported = Predictor(folder, device="cpu", trust_code=(folder / PT2).exists())
        found = compare(original, exported, images)
        _refuse_unlike(config, found)
        write_card(folder, source, found, format=config.format)
    size = sum(file.stat().st_size for file in output.iterdir())
    display.say(in_words(found))
    display.say(f"{output}: {', '.join(sorted(file.name for file in output.iterdir()))}; {size / 1e6:.1f} MB")
    if config.push:
        display.say(push(output, config.push))


def source_of(predictor: Predictor, *, any_size: bool = False, calibration: Sequence[np.ndarray] = ()) -> Source:
    """A predictor's network with what a file is to say of it."""
    network, checkpoint = predictor.network, predictor.checkpoint
    name = checkpoint.model or getattr(network, "pretrained_cfg", {}).get("architecture")
    about = {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "model_args": {**checkpoint.model_args, "num_classes": len(predictor.class_names)},
        "class_names": list(predictor.class_names),
        "data_config": predictor.data_config,
        "exported": {"t2t_vit": t2t_vit.__version__, "torch": torch.__version__, "from": checkpoint.kind},
        **{key: checkpoint.extra[key] for key in ABOUT if key in checkpoint.extra and key != "exported"},
    }
    channels, height, width = predictor.data_config["input_size"]
    return Source(network, plain(about), (channels, height, width), any_size, calibration)


def in_words(found: Fidelity) -> str:
    """What a comparison found, in two lines."""
    speed = found.images_per_second / found.original_images_per_second
    return (
        f"{found.agreement_percent:.2f} % of {found.num_images:,} images have the same label as before, "
        f"probabilities differ by at most {found.largest_difference:.1e}\n"
        f"{found.images_per_second:.1f} images/s in batches of 16, {speed:.2f} times the original in eager float32; "
        f"{found.latency_ms:.1f} ms for one image, the original takes {found.original_latency_ms:.1f} ms"
    )


def _open(config: ExportConfig) -> Predictor:
    build: dict[str, Any] = {"model": config.model, "use_ema": config.use_ema}
    if config.img_size is not None:
        build["img_size"] = to_2tuple(config.img_size)
    original = Predictor(config.checkpoint, device="cpu", **build)
    if isinstance(original.network, ExportedNetwork):
        raise UserError(f"{config.checkpoint} is exported already: give the checkpoint that it was made of.")
    if config.any_size and isinstance(original.network, T2TViT):
        build |= {"dynamic_img_size": True}
        original = Predictor(config.checkpoint, device="cpu", **build)
    for parameter in original.network.parameters():
        parameter.requires_grad_(False)
    assert isinstance(original.network, nn.Module)
    return original


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output, which takes its place when all went well, and disappears when not."""
    with write_errors_told(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield folder
        with write_errors_told(output):
            folder.chmod(0o755)  # mkdtemp's are for the user alone
            if output.is_dir():
                output.rmdir()  # it is empty
            folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _images(config: ExportConfig, predictor: Predictor) -> Iterator[tuple[list[Path | str], list[Path | str]]]:
    """Readable images to compare on, and to calibrate by.

    To compare are those given, else every other one of those to calibrate by, else samples of scikit-learn.
    """
    calibrating = _readable(predictor, find_images(config.calibrate)) if config.calibrate else []
    if config.images:
        comparing = _readable(predictor, find_images(config.images))
    elif len(calibrating) > 1:
        comparing, calibrating = calibrating[1::2], calibrating[::2]
    else:
        comparing = []
    with tempfile.TemporaryDirectory() as folder:
        comparing = comparing or list(_sample_images(Path(folder), predictor.data_config["input_size"][0]))
        yield _spread(comparing, NUM_COMPARED), _spread(calibrating, NUM_CALIBRATED)


def _readable(predictor: Predictor, images: Sequence[Path | str]) -> list[Path | str]:
    images = _spread(images, 2 * NUM_COMPARED)
    bad = {prediction.name for prediction in predictor(images, 1, workers=0) if prediction.error is not None}
    if len(bad) == len(images):
        raise UserError(f"None of the {len(images):,} images can be read.")
    return [image for image in images if str(image) not in bad]


def _spread(images: Sequence[Path | str], count: int) -> list[Path | str]:
    """At most so many, evenly from the first to the last, so that all folders have their share."""
    if len(images) <= count:
        return list(images)
    return [images[row] for row in np.linspace(0, len(images) - 1, count).round().astype(int)]


def _sample_images(folder: Path, in_chans: int) -> Iterator[Path]:
    """Writes 64 crops of scikit-learn's two photographs and 64 of its digits; noise where channels are no colours."""
    rng = np.random.default_rng(0)
    arrays: list[np.ndarray] = []
    if in_chans not in (1, 3):
        arrays = [rng.normal(size=(64, 64, in_chans)).astype(np.float32) for _ in range(64)]
        for row, array in enumerate(arrays):
            np.save(folder / f"{row}.npy", array)
            yield folder / f"{row}.npy"
        return
    for photograph in load_sample_images().images:
        for _ in range(32):
            side = int(rng.integers(150, 400))
            top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
            arrays.append(photograph[top : top + side, left : left + side])
    arrays += list(np.round(load_digits().images[:64] * (255 / 16)).astype(np.uint8))
    for row, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{row}.png")
        yield folder / f"{row}.png"


def _refuse_unlike(config: ExportConfig, found: Fidelity) -> None:
    wrong = []
    if found.agreement_percent < config.least_agreement:
        wrong.append(
            f"{found.agreement_percent:.2f} % of {found.num_images:,} images have the same label, "
            f"at least {config.least_agreement:g} % must (--least-agreement)"
        )
    if not config.format.endswith("int8") and not found.largest_difference <= LARGEST_DIFFERENCE:
        wrong.append(f"a probability differs by {found.largest_difference:.2g}, at most {LARGEST_DIFFERENCE:g} may")
    if wrong:
        advice = " Calibrate on more images of the kind it will see." if config.calibrate else ""
        raise UserError(f"What was written does not answer as the original: {'; '.join(wrong)}.{advice}")
