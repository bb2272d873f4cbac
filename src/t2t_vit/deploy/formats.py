"""How a network is written in each format, into a folder of its own."""

import importlib.resources
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from timm.models import save_for_hf
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.inference.exported import INPUT_SIZE, NAMES, need
from t2t_vit.models.checkpoint_formats import FORMAT

ONNX, IR, PT2 = NAMES[".onnx"], NAMES[".xml"], NAMES[".pt2"]
WEB_PACKAGE = "onnxruntime-web@^1.22"
WEB_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Of its dist/, what runs on a CPU."""
WEB_FILTERS = ("bilinear", "bicubic", "lanczos")
OPSET = 20
"""The first that has Gelu: it is one operator instead of five."""


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        network: on the CPU, float32, in evaluation mode.
        about: what the file is to say of it, for JSON: `model_section`, `calibration` and more.
        input_size: (C, H, W) that it was trained at.
        any_size: whether it is to take images of any height and width.
        calibration: normalised images, (1, C, H, W), float32, by which ranges of 8 bits are chosen; empty for none.
        web_runtime: a folder of the npm package onnxruntime-web; None lets npm fetch it.
    """

    network: nn.Module
    about: Mapping[str, Any]
    input_size: tuple[int, int, int]
    any_size: bool = False
    calibration: Sequence[np.ndarray] = ()
    web_runtime: Path | None = None

    @property
    def metadata(self) -> str:
        return json.dumps(self.about, ensure_ascii=False)


def write_onnx(source: Source, folder: Path) -> None:
    """One ONNX file, for any number of images at a time."""
    need("onnxscript", "onnx")
    onnx = need("onnx", "onnx")
    with _quiet():
        program = torch.onnx.export(
            source.network,
            (_example(source),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(_free_axes(source),),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    del graph.metadata_props[:]
    for node in graph.graph.node:  # names of the machine's files and lines of code
        del node.metadata_props[:]
    graph.producer_name, graph.producer_version = "t2t-vit", source.about["exported"]["t2t_vit"]
    onnx.helper.set_model_props(graph, {FORMAT: source.metadata})
    onnx.checker.check_model(graph)
    onnx.save_model(graph, folder / ONNX)


def write_onnx_int8(source: Source, folder: Path) -> None:
    """One ONNX file whose products with constant weights are of 8 bits, with ranges by calibration or found in use."""
    write_onnx(source, folder)
    onnx, quantization = need("onnx", "onnx"), need("onnxruntime.quantization", "onnx")
    file, prepared = folder / ONNX, folder / "prepared.onnx"
    with _quiet():
        # The shapes that it would infer by symbols fail on what torch.onnx writes.
        quantization.quant_pre_process(file, prepared, skip_symbolic_shape=True)
        graph = onnx.load_model(prepared).graph
        constants = {tensor.name for tensor in graph.initializer}
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        settings: dict[str, Any] = {
            # Products of activations lose more, and gain less: q k^T, attention times v.
            "nodes_to_quantize": [node.name for node in products if node.input[1] in constants],
            "op_types_to_quantize": ["MatMul", "Gemm"],
            "per_channel": True,
            "weight_type": quantization.QuantType.QInt8,
        }
        if source.calibration:
            quantization.quantize_static(
                prepared,
                file,
                _Reader(source.calibration),
                activation_type=quantization.QuantType.QUInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                **settings,
            )
        else:
            quantization.quantize_dynamic(prepared, file, **settings)
    prepared.unlink()
    graph = onnx.load_model(file)
    onnx.helper.set_model_props(graph, {FORMAT: source.metadata})
    onnx.save_model(graph, file)


def write_openvino(source: Source, folder: Path) -> None:
    """OpenVINO's pair of files, float32."""
    _save_openvino(source, _to_openvino(source), folder)


def write_openvino_int8(source: Source, folder: Path) -> None:
    """OpenVINO's pair of files, with 8 bits where NNCF chooses them.

    Where most products are of matrices, convolutions and products of activations keep their type, and SmoothQuant, a
    part of NNCF's mode for transformers, is off: convolutions and SmoothQuant each changed many labels (docs/log.md).
    """
    model = _to_openvino(source)
    nncf = need("nncf", "openvino")
    advanced = need("nncf.quantization.advanced_parameters", "openvino")
    operations = model.get_ops()
    products = [one for one in operations if one.get_type_name() == "MatMul"]
    convolutions = [one for one in operations if one.get_type_name() in ("Convolution", "GroupConvolution")]
    settings: dict[str, Any] = {}
    if len(products) > len(convolutions):
        kept = [*convolutions, *(one for one in products if not _has_constant_weights(one))]
        settings = {
            "model_type": nncf.ModelType.TRANSFORMER,
            "ignored_scope": nncf.IgnoredScope(names=[one.get_friendly_name() for one in kept]),
            "advanced_parameters": advanced.AdvancedQuantizationParameters(
                smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
            ),
        }
    with _quiet():
        nncf.set_log_level(logging.ERROR)
        images = nncf.Dataset(list(source.calibration))
        model = nncf.quantize(model, images, subset_size=len(source.calibration), **settings)
    _save_openvino(source, model, folder)


def write_safetensors(source: Source, folder: Path) -> None:
    """The folder that timm and Hugging Face's hub know: config.json beside model.safetensors."""
    network: Any = source.network
    about = source.about
    config = {"label_names": list(about["class_names"]), "num_classes": network.num_classes}
    keys = ("input_size", "mean", "std", "crop_pct", "interpolation")
    data_config = {key: about["data_config"][key] for key in keys}
    save_for_hf(network, str(folder), model_config=config, safe_serialization=True, data_config=data_config)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)  # transformers refuses it there
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    metadata = {"format": "pt", FORMAT: source.metadata}  # transformers wants the first
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata=metadata)


def write_pt2(source: Source, folder: Path) -> None:
    """A program of torch.export, for any number of images at a time."""
    with _quiet():
        program = torch.export.export(source.network, (_example(source),), dynamic_shapes=(_free_axes(source),))
        torch.export.save(program, folder / PT2, extra_files={FORMAT: source.metadata})


def write_aotinductor(source: Source, folder: Path) -> None:
    """A program of torch.export with the machine code that AOTInductor makes of it, for the processor at hand.

    Needs a C++ compiler. Torch checks no sizes by itself when it runs, so that the file says them.
    """
    sizes = [source.input_size[0], None, None] if source.any_size else source.input_size
    with _quiet():
        program = torch.export.export(source.network, (_example(source),), dynamic_shapes=(_free_axes(source),))
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / PT2),
            inductor_configs={"aot_inductor.metadata": {FORMAT: source.metadata, INPUT_SIZE: json.dumps(sizes)}},
        )


def write_web(source: Source, folder: Path) -> None:
    """A folder for any static host: the page, the ONNX file and onnxruntime-web, which run in the visitor's browser."""
    data_config = source.about["data_config"]
    if source.input_size[0] not in (1, 3):
        raise UserError(
            f"A browser reads images in colour or grey, and the network takes {source.input_size[0]} channels."
        )
    if data_config["interpolation"] not in WEB_FILTERS:
        raise UserError(
            f"The page resizes images with {', '.join(WEB_FILTERS)}, and the network takes them resized with "
            f"{data_config['interpolation']}."
        )
    write_onnx(source, folder)
    page = importlib.resources.files("t2t_vit.deploy").joinpath("page.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(page, encoding="utf-8")
    about = {
        "engine": "onnx",
        "model": source.about["model"],
        "classes": source.about["class_names"],
        "data_config": data_config,
        "temperature": source.about.get("calibration", {}).get("temperature", 1.0),
        "layers": [],
    }
    (folder / "model.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    with _web_runtime(source.web_runtime) as package:
        for name in WEB_FILES:
            shutil.copyfile(package / "dist" / name, folder / name)


@contextmanager
def _web_runtime(package: Path | None) -> Iterator[Path]:
    """The unpacked npm package onnxruntime-web, given or fetched by npm.

    Raises:
        UserError: it is not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        if package is None:
            try:
                words = ["npm", "pack", "--silent", WEB_PACKAGE]
                packed = subprocess.run(
                    words, cwd=folder, check=True, capture_output=True, text=True, timeout=300
                ).stdout.split()[-1]
                with tarfile.open(Path(folder) / packed) as archive:
                    archive.extractall(folder, filter="data")
            except (OSError, subprocess.SubprocessError, tarfile.TarError, IndexError) as error:
                raise UserError(
                    f"npm could not fetch {WEB_PACKAGE}, which runs the network in a browser. Install Node.js, or give "
                    "a folder of that package with --onnxruntime-web."
                ) from error
            package = Path(folder) / "package"
        if absent := [name for name in WEB_FILES if not (package / "dist" / name).is_file()]:
            raise UserError(f"{package} is no onnxruntime-web: it has no dist/{absent[0]}.")
        yield package


WRITERS: Mapping[str, Callable[[Source, Path], None]] = {
    "onnx": write_onnx,
    "onnx-int8": write_onnx_int8,
    "openvino": write_openvino,
    "openvino-int8": write_openvino_int8,
    "safetensors": write_safetensors,
    "web": write_web,
    "pt2": write_pt2,
    "aotinductor": write_aotinductor,
}


class _Reader:
    """Gives images one by one, as ONNX Runtime's calibration asks for them."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"images": image}


def _example(source: Source) -> torch.Tensor:
    """Two images: an axis of one would be taken for a constant."""
    return torch.zeros(2, *source.input_size)


def _free_axes(source: Source) -> dict[int, Any]:
    free = torch.export.Dim.DYNAMIC if source.any_size else torch.export.Dim.STATIC
    return {0: torch.export.Dim("batch"), 2: free, 3: free}


def _to_openvino(source: Source) -> Any:
    openvino = need("openvino", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(source, Path(folder))
        return openvino.convert_model(Path(folder) / ONNX)


def _has_constant_weights(product: Any) -> bool:
    """Whether a product of OpenVINO's has a constant among its factors, by itself or in another form."""
    for value in product.inputs():
        node = value.get_source_output().get_node()
        while node.get_type_name() in ("Convert", "Transpose", "Reshape"):
            node = node.input(0).get_source_output().get_node()
        if node.get_type_name() == "Constant":
            return True
    return False


def _save_openvino(source: Source, model: Any, folder: Path) -> None:
    model.set_rt_info(source.metadata, [FORMAT])
    need("openvino", "openvino").save_model(model, folder / IR, compress_to_fp16=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters print and warn of is about themselves."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever their reason, it is about this network
            reason = str(error).strip().splitlines()
            raise UserError(
                f"The network could not be written in this format: {reason[0] if reason else type(error).__name__}"
            ) from error
