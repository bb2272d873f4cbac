"""Settings of the commands that use a trained network."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from t2t_vit.data.config import BACKGROUND_HELP
from t2t_vit.inference.config import CHECKPOINT_HELP, IMAGES, IMAGES_HELP, RUNTIME_HELP, TRUST_HELP
from t2t_vit.models.names import SHIPPED
from t2t_vit.options import URLS, Settings, argument, option


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Settings):
    """Name what is on images, with probabilities."""

    images: tuple[str, ...] = argument(IMAGES_HELP, metavar="IMAGE", exists=IMAGES)
    checkpoint: str = option(..., CHECKPOINT_HELP, metavar="PATH", exists=(*URLS, *SHIPPED))
    top_k: int | None = option(
        None,
        "labels to show for each image, the likeliest first; by default 5, or 1 where several are printed",
        metavar="K",
        at_least=1,
    )
    threshold: float = option(0.0, "least probability of a label that is shown", at_least=0, below=1)
    flip: bool = option(False, "average the answers for each image and its mirror image")
    embed: bool = option(False, "give the features before the classifier too", needs="json or jsonl or parquet or csv")
    background: str | None = option(None, f"{BACKGROUND_HELP}; by default the checkpoint's", metavar="COLOUR")
    json: bool = option(False, "print JSON")
    csv: str | None = option(
        None, "write comma-separated values, an image a row, instead of printing", metavar="FILE", writes=()
    )
    jsonl: str | None = option(
        None, "write JSON, an image a line, instead of printing", metavar="FILE", writes=(), unless="csv"
    )
    parquet: str | None = option(
        None, "write a folder of Parquet files, instead of printing", metavar="FOLDER", unless="csv or jsonl"
    )
    runtime: Literal["onnxruntime", "openvino"] | None = option(None, RUNTIME_HELP)
    trust_code: bool = option(False, TRUST_HELP)
    resume: bool = option(False, "go on after the last image that was written", needs="csv or jsonl or parquet")
    batch_size: int | None = option(None, "images per step; by default 32, on a GPU 256", short="b", at_least=1)
    workers: int | None = option(
        None, "processes that load images; by default one a core", short="j", at_least=0, unless="ray"
    )
    ray: int | None = option(None, "share the images among so many actors of a Ray cluster", at_least=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")

    def contradictions(self) -> Iterable[str]:
        """Printing and writing exclude each other, and what is there is not overwritten."""
        yield from _of_ray(self.ray, self.device)
        output = self.csv or self.jsonl or self.parquet
        if self.json and output:
            yield "--json prints, and has no effect beside a file to write: leave it out."
        if output and not self.resume and os.path.exists(output):  # noqa: PTH110 (it may be too long for a Path)
            yield f"{output} is there already: go on with it by --resume, remove it, or choose another name."


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Write a trained network for other programs, and check that it answers as before."""

    checkpoint: str = option(..., "weights, in any known format: a path or an http(s) URL", metavar="PATH", exists=URLS)
    format: Literal["onnx", "onnx-int8", "openvino", "openvino-int8", "safetensors", "web", "pt2", "aotinductor"] = (
        option(
            ...,
            "of the export; safetensors is timm's and Hugging Face's folder, web a page for any static host, "
            "aotinductor for processors like this one",
        )
    )
    output: str = option(..., "the folder to write", metavar="FOLDER")
    images: tuple[str, ...] = option(
        (), f"to compare both networks on: {IMAGES_HELP}; by default photographs and digits of scikit-learn",
        metavar="IMAGE", exists=IMAGES,
    )  # fmt: skip
    calibrate: tuple[str, ...] = option(
        (), "images, as for --images, by which ranges of 8 bits are chosen", metavar="IMAGE", exists=IMAGES
    )
    dynamic: bool = option(False, "onnx-int8 without --calibrate: finds ranges while it runs")
    onnxruntime_web: str | None = option(
        None, "for web: a folder of that npm package; by default npm fetches it", metavar="FOLDER", exists=()
    )
    any_size: bool = option(False, "take images of any height and width, not those of training alone")
    least_agreement: float = option(
        99.0, "percent of the images for which both must give the same label", at_least=0, at_most=100
    )
    model: str | None = option(None, "the network; by default the one that the file is for")
    img_size: int | tuple[int, int] | None = option(None, "side, or height and width, in pixels", at_least=1)
    use_ema: bool = option(True, "take the moving average of the weights where the file has one")
    push: str | None = option(
        None, "upload the folder to the Hugging Face hub afterwards, with huggingface_hub's token", metavar="USER/NAME"
    )

    def contradictions(self) -> Iterable[str]:
        """Formats of 8 bits need ranges; a folder that holds something is not overwritten."""
        is_int8, is_dynamic = self.format.endswith("-int8"), self.format == "onnx-int8" and self.dynamic
        if is_int8 and not self.calibrate and not is_dynamic:
            other = ", or --dynamic, which is slower" if self.format == "onnx-int8" else ""
            yield f"--format {self.format} needs --calibrate: some hundred images of the kind it will see{other}."
        if self.calibrate and not is_int8:
            yield f"--calibrate has no effect on --format {self.format}: leave it out."
        if self.calibrate and self.dynamic:
            yield "--dynamic finds ranges without --calibrate: leave one of them out."
        if self.dynamic and self.format != "onnx-int8":
            yield f"--dynamic has no effect on --format {self.format}: leave it out."
        if self.onnxruntime_web and self.format != "web":
            yield f"--onnxruntime-web has no effect on --format {self.format}: leave it out."
        if self.any_size and self.format == "web":
            yield "--any-size has no effect on --format web, whose page resizes images: leave it out."
        if self.any_size and self.format == "safetensors":
            yield "--any-size has no effect on --format safetensors, which can be loaded at any size: leave it out."
        is_folder = os.path.isdir(self.output)  # noqa: PTH112 (it may be too long for a Path)
        if os.listdir(self.output) if is_folder else os.path.exists(self.output):  # noqa: PTH110, PTH208
            yield f"{self.output} is there already and not empty: remove it, or choose another name."
        if self.push is not None and self.push.count("/") != 1:
            yield f"--push takes USER/NAME, got {self.push}."


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Settings):
    """Answer images over HTTP: an interface for programs, and a page for people."""

    checkpoint: str = option(..., CHECKPOINT_HELP, metavar="PATH", exists=(*URLS, *SHIPPED))
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 lets other machines in")
    port: int = option(8000, "port to listen at, 0 for a free one", at_least=0, at_most=65535)
    workers: int = option(1, "server processes, each with its own network", short="j", at_least=1, unless="ray")
    ray: int | None = option(
        None, "answer with up to so many networks in a Ray cluster, as many as the load needs", at_least=1
    )
    batch_size: int = option(16, "images computed together at most", short="b", at_least=1)
    max_wait_ms: float = option(5.0, "how long an image waits for others", at_least=0)
    queue: int = option(256, "images that may wait; further ones are told to try again", at_least="max_images")
    max_megabytes: float = option(20.0, "of a request", above=0)
    max_megapixels: float = option(50.0, "of an image", above=0, at_most=150)
    max_images: int = option(32, "of a request", at_least=1)
    timeout: float = option(30.0, "seconds from a request to its answer", above=0)
    background: str | None = option(None, f"{BACKGROUND_HELP}; by default the checkpoint's", metavar="COLOUR")
    runtime: Literal["onnxruntime", "openvino"] | None = option(None, RUNTIME_HELP)
    trust_code: bool = option(False, TRUST_HELP)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    amp: bool = option(False, "half precision")

    def contradictions(self) -> Iterable[str]:
        """Ray chooses the GPU of a process."""
        yield from _of_ray(self.ray, self.device)


def _of_ray(ray: int | None, device: str) -> Iterable[str]:
    if ray is not None and ":" in device:
        yield f"--device {device} names a GPU, and Ray gives each process one: give --device {device.split(':')[0]}."
