"""Networks in exported files, run by ONNX Runtime, OpenVINO or torch, and called as the original is.

What a file says besides its weights is what our checkpoints say, as JSON under `t2t_vit`. No ONNX file and no OpenVINO
file that is opened here runs code. A .pt2 file does, and is opened only for whom it is trusted by.
"""

import dataclasses
import functools
import json
import os
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from t2t_vit.errors import UserError
from t2t_vit.models.checkpoint_formats import DATA_KEYS, FORMAT, Checkpoint, LoadReport, about_network
from t2t_vit.runtime.machine import Machine

INPUT_SIZE = "input_size"
"""The entry of AOTInductor's metadata that has [C, H, W], null for an axis of any size."""
NAMES = {".onnx": "model.onnx", ".xml": "model.xml", ".pt2": "model.pt2"}
"""The file of each kind in a folder that `export` wrote."""
RUNTIMES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".pt2": ("torch",)}
"""What runs each kind; the first one by default."""
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operators that ONNX Runtime comes with. Any others need a library that somebody wrote."""
OPENVINO_TYPES = {None: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""By itself OpenVINO computes in bfloat16 where the hardware is faster at it."""


class ExportedNetwork:
    """Maps normalised images, (B, C, H, W), float32, anywhere, to logits, (B, num_classes), beside the images.

    Attributes:
        runtime: what computes, in words.
        num_classes: None if the file does not tell.
        input_size: (C, H, W); None for an axis of any size.
        num_tensors: how many constants the file has.
    """

    def __init__(
        self,
        run: Any,
        *,
        runtime: str,
        num_classes: int | None,
        input_size: Sequence[int | None],
        num_tensors: int,
    ) -> None:
        self._run, self.runtime, self.num_classes = run, runtime, num_classes
        self.input_size, self.num_tensors = tuple(input_size), num_tensors

    def __call__(self, images: Tensor) -> Tensor:
        """The logits.

        Raises:
            UserError: the images have another size.
        """
        if any(size not in (None, axis) for size, axis in zip(self.input_size, images.shape[1:], strict=True)):
            raise UserError(
                f"The exported network takes images of {_in_words(self.input_size)}, got {_in_words(images.shape[1:])}."
            )
        logits = self._run(np.ascontiguousarray(images.cpu().numpy()))
        return torch.from_numpy(np.asarray(logits, dtype=np.float32)).to(images.device)


def exported_file(path: str | os.PathLike[str]) -> Path | None:
    """The exported file at a path, or in a folder that holds one and no checkpoint; None where there is none."""
    file = Path(path).expanduser()
    if file.suffix.lower() in NAMES:
        return file
    found = [file / name for name in NAMES.values() if (file / name).is_file()]
    is_checkpoint = any((file / name).exists() for name in ("best.pt", "model.safetensors", "pytorch_model.bin"))
    return found[0] if found and not is_checkpoint else None


def open_exported(
    file: Path, machine: Machine, *, runtime: str | None = None, trust_code: bool = False
) -> tuple[ExportedNetwork, Checkpoint]:
    """Opens a file that `t2t-vit export` or somebody else wrote.

    Args:
        file: an .onnx, .xml or .pt2 file.
        machine: its half precision is OpenVINO's; ONNX files have their own types.
        runtime: "onnxruntime" or "openvino"; None takes the first that runs such a file.
        trust_code: run what a .pt2 file has in it.

    Returns:
        The network, and what the file says of it, without its weights.

    Raises:
        UserError: the file cannot be read, refers to other files or code, or its runtime is not installed.
    """
    kind = file.suffix.lower()
    runtime = runtime or RUNTIMES[kind][0]
    if runtime not in RUNTIMES[kind]:
        raise UserError(f"{file.name} is run by {' or '.join(RUNTIMES[kind])}, not by {runtime}: leave out --runtime.")
    if not file.is_file():
        raise UserError(f"No exported network at {file}: there is no such file.")
    if kind == ".pt2" and not trust_code:
        raise UserError(
            f"{file} was refused: opening a .pt2 file runs code that whoever made it put there. If you trust them, say "
            "so with --trust-code; an ONNX or safetensors export needs no trust."
        )
    if machine.amp_dtype is not None and (kind != ".pt2" and runtime == "onnxruntime"):
        raise UserError("ONNX Runtime computes in the types of the file: leave out --amp, or give --runtime openvino.")
    opener = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino, "torch": _open_torch}[runtime]
    network, metadata = opener(file, machine)
    return network, _checkpoint(file, network, metadata)


def need(package: str, extra: str) -> Any:
    """An optional package, imported.

    Raises:
        UserError: it is not installed; `extra` is of ours that brings it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(package)
    except ImportError as error:
        raise UserError(f"{package} is not installed: pip install 't2t-vit[{extra}]'.") from error


def read_onnx(file: Path) -> Any:
    """The graph in an ONNX file.

    Raises:
        UserError: it is no ONNX file, has weights in other files, or operators of others.
    """
    onnx = need("onnx", "onnx")
    try:
        graph = onnx.load_model(file, format="protobuf", load_external_data=False)
        is_empty = not graph.graph.node
    except Exception as error:  # bytes that anyone wrote can fail in any way
        raise UserError(f"{file} is no ONNX file, or is cut off or damaged. Export or copy it again.") from error
    if is_empty:
        raise UserError(f"{file} is no ONNX file, or is cut off or damaged. Export or copy it again.")
    if any(_is_elsewhere(onnx, message) for message in _messages(graph)):
        raise UserError(
            f"{file} was refused: it takes weights from other files, which may lie anywhere. Where it was made, save "
            "it as one file."
        )
    strange = {imported.domain for imported in graph.opset_import} - set(DOMAINS)
    used = {message.domain for message in _messages(graph) if isinstance(message, onnx.NodeProto)}
    functions = {function.domain for function in graph.functions}
    if foreign := sorted((strange & used) - functions):
        raise UserError(f"{file} was refused: it needs operators of {', '.join(foreign)}, which no runtime here has.")
    return graph


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all that are in it."""
    waiting = [message]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            if field.message_type.GetOptions().map_entry:
                continue
            waiting += [value] if hasattr(value, "ListFields") else list(value)


def _is_elsewhere(onnx: Any, message: Any) -> bool:
    return isinstance(message, onnx.TensorProto) and (
        message.data_location == onnx.TensorProto.EXTERNAL or len(message.external_data) > 0
    )


def _open_onnxruntime(file: Path, machine: Machine) -> tuple[ExportedNetwork, str | None]:
    graph = read_onnx(file)
    onnxruntime = need("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    wanted = ["CUDAExecutionProvider"] if machine.device.type == "cuda" else []
    providers = [name for name in (*wanted, "CPUExecutionProvider") if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(file),
            options,
            providers=providers,
            enable_fallback=0,  # which prints before it fails again
        )
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot run {file}: {_first_line(error)}.") from error
    network = _network(
        lambda images: session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: images})[0],
        runtime="ONNX Runtime",
        file=file,
        inputs=[(value.type == "tensor(float)", value.shape) for value in session.get_inputs()],
        outputs=[value.shape for value in session.get_outputs()],
        num_tensors=len(graph.graph.initializer),
    )
    return network, next((entry.value for entry in graph.metadata_props if entry.key == FORMAT), None)


def _open_openvino(file: Path, machine: Machine) -> tuple[ExportedNetwork, str | None]:
    metadata, is_own = None, file.suffix.lower() == ".xml"
    if not is_own:
        graph = read_onnx(file)
        metadata = next((entry.value for entry in graph.metadata_props if entry.key == FORMAT), None)
    else:
        with file.open("rb") as stream:
            if not stream.read(64).lstrip().startswith((b"<?xml", b"<net")):
                raise UserError(f"{file} is no file of OpenVINO's: expected XML. Export it again.")
    openvino, frontend = need("openvino", "openvino"), need("openvino.frontend", "openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[machine.amp_dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        # Of this kind alone: by itself OpenVINO tries the readers of all kinds that it knows.
        reader = frontend.FrontEndManager().load_by_framework("ir" if is_own else "onnx")
        model = reader.convert(reader.load(str(file)))
        with _core_lock:  # a cache may be asked twice before it has the first answer
            core = _openvino_core()
        compiled = core.compile_model(model, "CPU", settings)
        if metadata is None and model.has_rt_info([FORMAT]):
            metadata = str(model.get_rt_info([FORMAT]).value)
    except Exception as error:
        raise UserError(f"OpenVINO cannot run {file}: {_first_line(error)}.") from error
    lock = threading.Lock()  # a compiled model has one place for its results

    def run(images: np.ndarray) -> np.ndarray:
        with lock:
            return compiled(images)[0].copy()

    network = _network(
        run,
        runtime="OpenVINO",
        file=file,
        inputs=[(one.element_type == openvino.Type.f32, _openvino_shape(one)) for one in model.inputs],
        outputs=[_openvino_shape(one) for one in model.outputs],
        num_tensors=sum(operation.get_type_name() == "Constant" for operation in model.get_ops()),
    )
    return network, metadata


_core_lock = threading.Lock()


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO's core, which lives as long as the process.

    With its first network a core gives the thread a stack for signals, which goes with it. Where two cores end in the
    order in which they began, the thread is left with a stack that is gone, and the next signal that Python handles
    kills the process.
    """
    return need("openvino", "openvino").Core()


def _in_words(sizes: Sequence[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in sizes)


def _openvino_shape(value: Any) -> list[int | None]:
    return [size.get_length() if size.is_static else None for size in value.get_partial_shape()]


def _open_torch(file: Path, machine: Machine) -> tuple[ExportedNetwork, str | None]:
    if _is_compiled(file):
        return _open_aotinductor(file, machine)
    extra = {FORMAT: ""}
    try:
        program = torch.export.load(file, extra_files=extra)
    except Exception as error:
        raise UserError(f"{file} is no exported program of torch, or is damaged: {_first_line(error)}.") from error
    module = program.module().to(machine.device)

    def run(images: np.ndarray) -> np.ndarray:
        with machine.autocast():
            return module(torch.from_numpy(images).to(machine.device)).float().cpu().numpy()

    images_of = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(images_of) != 1 or len(images_of[0].meta["val"].shape) != 4:
        raise UserError(f"{file} is no image classifier: expected one input, images (B, C, H, W).")
    sizes = images_of[0].meta["val"].shape[1:]
    network = ExportedNetwork(
        run,
        runtime="torch.export",
        num_classes=None,
        input_size=[size if isinstance(size, int) else None for size in sizes],
        num_tensors=len(program.state_dict),
    )
    return network, extra[FORMAT] or None


def _is_compiled(file: Path) -> bool:
    """Whether a .pt2 file holds machine code of AOTInductor."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/data/aotinductor/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _open_aotinductor(file: Path, machine: Machine) -> tuple[ExportedNetwork, str | None]:
    if machine.amp_dtype is not None:
        raise UserError(f"{file} computes in the types that it was compiled for: leave out --amp.")
    try:
        program = torch._inductor.aoti_load_package(str(file))
        metadata = program.loader.get_metadata()
    except Exception as error:
        raise UserError(
            f"{file} was compiled for another kind of machine or release of torch, or is damaged: {_first_line(error)}."
        ) from error
    device = metadata.get("AOTI_DEVICE_KEY", "cpu")
    network = ExportedNetwork(
        lambda images: program(torch.from_numpy(images).to(device)).float().cpu().numpy(),
        runtime="AOTInductor",
        num_classes=None,
        input_size=json.loads(metadata.get(INPUT_SIZE, "[null, null, null]")),
        num_tensors=len(program.get_constant_fqns()),
    )
    return network, metadata.get(FORMAT)


def _network(
    run: Any,
    *,
    runtime: str,
    file: Path,
    inputs: Sequence[tuple[bool, Sequence[Any]]],
    outputs: Sequence[Sequence[Any]],
    num_tensors: int,
) -> ExportedNetwork:
    """The network with what its first output and its inputs tell; an axis of any size has no number."""
    if len(inputs) != 1 or not inputs[0][0] or len(inputs[0][1]) != 4 or not outputs:
        raise UserError(
            f"{file} is no image classifier: expected one input, float32 images (B, C, H, W), and an output, logits."
        )
    output = outputs[0]
    batch, *sizes = [size if isinstance(size, int) else None for size in inputs[0][1]]
    if batch not in (None, 1):
        raise UserError(f"{file} takes {batch} images at a time, no more and no fewer: export it with a free batch.")
    if batch == 1:
        run = functools.partial(_one_by_one, run)
    classes = output[1] if len(output) == 2 and isinstance(output[1], int) else None
    return ExportedNetwork(run, runtime=runtime, num_classes=classes, input_size=sizes, num_tensors=num_tensors)


def _one_by_one(run: Any, images: np.ndarray) -> np.ndarray:
    return np.concatenate([run(image[None]) for image in images])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _checkpoint(file: Path, network: ExportedNetwork, metadata: str | None) -> Checkpoint:
    """What the file says of its network; where it is not ours, what its shapes tell, and ImageNet's mean."""
    changed = []
    if metadata is not None:
        checkpoint = about_network(metadata, str(file))
    else:
        checkpoint = Checkpoint(str(file), network.runtime, {})
        in_chans, *size = network.input_size
        if in_chans not in (1, 3) or None in size:
            raise UserError(
                f"{file} does not say how images are to be prepared, nor does its input's shape {network.input_size}: "
                "t2t-vit export writes files that do."
            )
        imagenet = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        data_config = {"input_size": [in_chans, *size], **imagenet, "crop_pct": 1.0, "interpolation": "bicubic"}
        checkpoint = dataclasses.replace(checkpoint, data_config=data_config)
        changed = ["preparation: ImageNet's mean and deviation, whole images, as the file does not say"]
    wanted = (checkpoint.data_config or {}).get("input_size", ())
    if not {*DATA_KEYS} <= {*(checkpoint.data_config or {})} or any(
        size not in (None, axis) for size, axis in zip(network.input_size, wanted, strict=True)
    ):
        raise UserError(
            f"{file} says that images are to be prepared as {checkpoint.data_config}, which is not what its network "
            f"takes, {network.input_size}. Export it again."
        )
    kind = f"exported network, which {network.runtime} runs,"
    report = LoadReport(str(file), kind, network.num_tensors, changed, left=[], used_ema=False)
    if network.num_classes is None and checkpoint.class_names:
        network.num_classes = len(checkpoint.class_names)
    if network.num_classes is None or network.num_classes < 1:
        raise UserError(f"{file} does not say how many classes it tells apart.")
    if checkpoint.class_names and len(checkpoint.class_names) != network.num_classes:
        raise UserError(
            f"{file} names {len(checkpoint.class_names)} classes, and its network tells {network.num_classes} apart."
        )
    return dataclasses.replace(checkpoint, kind=kind, report=report)
