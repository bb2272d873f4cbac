"""Feeds every reader of strangers' bytes with damaged inputs, and the server with odd requests.

    pip install '.[serve,onnx,openvino]' schemathesis
    python benchmarks/fuzz.py --count 10000            # every target; --targets images,yaml chooses

A valid file is damaged: bits are flipped, bytes replaced, removed, repeated or spliced in from another file, the end is
cut off, numbers become extreme. Each target runs in a process of its own, so that a crash of native code is seen. An input
passes if it is read, or refused by the error that is meant for users. Printed are the inputs, how many were read, the
errors that should not have been, and the growth of the process's memory over the second half. Inputs that failed are kept.
"""

import argparse
import base64
import io
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from t2t_vit.errors import UserError
from t2t_vit.runtime.console import new_table, print_table

EXTREMES = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"-1",
    b"1e999",
]


def damage(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the seeds with one to eight faults."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not content:
            break
        place = rng.randrange(len(content))
        if rng.random() < 0.5:  # headers are short, and say most
            place = min(place, rng.randrange(1, 200)) % len(content)
        kind = rng.randrange(7)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place] = rng.randrange(256)
        elif kind == 2:
            extreme = rng.choice(EXTREMES)
            content[place : place + len(extreme)] = extreme
        elif kind == 3:
            del content[place : place + rng.choice((1, 2, 4, 16, 256))]
        elif kind == 4:
            content[place:place] = content[place : place + rng.choice((1, 4, 64))] * rng.choice((1, 2, 20))
        elif kind == 5:
            other = rng.choice(seeds)
            first = rng.randrange(len(other) or 1)
            content[place:place] = other[first : first + rng.randrange(1, 200)]
        else:
            del content[place:]
    return bytes(content)


# Targets: each gives valid inputs, and a function that reads one and raises UserError or Rejected for what is refused.

Read = Callable[[bytes], object]


def images() -> tuple[list[bytes], Read]:
    """Image files as the server decodes them."""
    from t2t_vit.data.pixels import PixelFormat
    from t2t_vit.data.transforms import eval_transform
    from t2t_vit.deploy.limits import FORMATS, Limits, decode

    config = {
        "input_size": (3, 32, 32),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    seeds = []
    for format in FORMATS:
        for mode in ("RGB", "L", "P", "RGBA", "1", "I;16"):
            file = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(file, format)
            except (OSError, ValueError, KeyError):
                continue  # not every format has every mode
            seeds.append(file.getvalue())
    file = io.BytesIO()
    frames = [Image.fromarray(pixels), Image.fromarray(pixels[::-1])]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    seeds.append(file.getvalue())
    how = {"format": PixelFormat(), "transform": eval_transform(config), "shorter_px": 32}
    return seeds, lambda content: decode(content, name="it", limits=Limits(max_pixels=2_000_000), **how)


def arrays() -> tuple[list[bytes], Read]:
    """NumPy files as pictures of several channels."""
    from t2t_vit.data.images import read_image
    from t2t_vit.data.pixels import PixelFormat

    seeds = []
    for dtype in (np.float32, np.uint8, np.uint16, np.float64, np.complex64, np.dtype("U3")):
        file, packed = io.BytesIO(), io.BytesIO()
        values = np.zeros((8, 9, 4), dtype)
        np.save(file, values)
        np.savez_compressed(packed, a=values)
        seeds += [file.getvalue(), packed.getvalue()]
    return seeds, lambda content: read_image(io.BytesIO(content), name="it", format=PixelFormat(4))


def written(read: Callable[[Path], object], ending: str, beside: bytes = b"") -> Read:
    """Reads from a file; `beside` it.bin holds what never changes."""
    path = Path(tempfile.mkdtemp()) / f"it{ending}"
    path.with_suffix(".bin").write_bytes(beside)

    def read_content(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return read_content


def checkpoints() -> tuple[list[bytes], Read]:
    """Torch files and safetensors, of our own and of other formats."""
    from t2t_vit.models.checkpoint_formats import read_checkpoint

    ours = {
        "format": "t2t_vit", "version": 1, "model": "t2t_vit_7", "model_args": {"num_classes": 3}, "class_names": ["a", "b", "c"],
        "data_config": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
        "calibration": {"temperature": 1.5}, "state_dict": {"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)},
    }  # fmt: skip
    seeds = []
    for content in (
        ours,
        ours["state_dict"],
        {"net": ours["state_dict"], "epoch": 3},
        {"state_dict_ema": ours["state_dict"]},
    ):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            seeds.append(file.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        about = {key: value for key, value in ours.items() if key != "state_dict"}
        for metadata in ({"format": "pt"}, {"t2t_vit": json.dumps(about)}):
            save_file(ours["state_dict"], f"{folder}/a.safetensors", metadata=metadata)
            seeds.append(Path(folder, "a.safetensors").read_bytes())
    return seeds, written(read_checkpoint, ".pt")


def onnx_files() -> tuple[list[bytes], Read]:
    """ONNX files, their metadata and their graphs, up to the session that would run them."""
    import onnx

    from t2t_vit.inference.exported import open_exported
    from t2t_vit.runtime.machine import find_machine

    helper, types = onnx.helper, onnx.TensorProto
    about = {
        "version": 1,
        "class_names": ["a", "b"],
        "data_config": {"input_size": [3, 4, 4], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    seeds = []
    for metadata in (None, json.dumps(about)):
        weights = [
            onnx.numpy_helper.from_array(np.ones((48, 2), np.float32), "weights"),
            onnx.numpy_helper.from_array(np.array([0, -1]), "shape"),
        ]
        nodes = [
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["y"]),
        ]
        x = helper.make_tensor_value_info("x", types.FLOAT, ["n", 3, 4, 4])
        y = helper.make_tensor_value_info("y", types.FLOAT, ["n", 2])
        graph = helper.make_graph(nodes, "it", [x], [y], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        if metadata:
            helper.set_model_props(model, {"t2t_vit": metadata})
        seeds.append(model.SerializeToString())
    machine = find_machine("cpu", amp=False)
    return seeds, written(lambda path: open_exported(path, machine), ".onnx")


def openvino_files() -> tuple[list[bytes], Read]:
    """OpenVINO's XML, beside the weights it was written with, up to the compiled network."""
    import openvino
    from openvino import opset13

    from t2t_vit.inference.exported import open_exported
    from t2t_vit.runtime.machine import find_machine

    images = opset13.parameter([-1, 3, 4, 4], np.float32, name="images")
    flat = opset13.reshape(images, opset13.constant(np.array([0, -1])), special_zero=True)
    logits = opset13.matmul(flat, opset13.constant(np.ones((48, 2), np.float32)), False, False)
    model = openvino.Model([opset13.result(logits)], [images])
    about = {
        "version": 1,
        "class_names": ["a", "b"],
        "data_config": {"input_size": [3, 4, 4], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        for metadata in (None, json.dumps(about)):
            if metadata:
                model.set_rt_info(metadata, ["t2t_vit"])
            openvino.save_model(model, f"{folder}/it.xml", compress_to_fp16=False)
            seeds.append(Path(folder, "it.xml").read_bytes())
        weights = Path(folder, "it.bin").read_bytes()
    machine = find_machine("cpu", amp=False)
    return seeds, written(lambda path: open_exported(path, machine), ".xml", weights)


def onnx_metadata() -> tuple[list[bytes], Read]:
    """What an exported file says of itself."""
    from t2t_vit.models.checkpoint_formats import about_network

    about = {
        "format": "t2t_vit", "version": 1, "model": "t2t_vit_7", "model_args": {"num_classes": 2}, "class_names": ["a", "b"],
        "data_config": {
            "input_size": [3, 4, 4], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bicubic",
            "background": "white",
        },
        "calibration": {"temperature": 1.5}, "split": {"kind": "stratified"},
    }  # fmt: skip
    return [json.dumps(about).encode()], lambda content: about_network(content.decode("utf-8", "replace"), "it")


def yaml_files() -> tuple[list[bytes], Read]:
    """Settings in a YAML file."""
    from t2t_vit.options import read_settings
    from t2t_vit.training.config import TrainConfig

    seeds = [
        b"data: digits\nmodel: t2t_vit_7\nlr: 5e-4\nimg_size: [64, 64]\nscale: [0.8, 1.0]\nhflip: 0.5\namp: true\n",
        b"a: &a [x, x]\nb: &b [*a, *a]\nlr: !!python/object/apply:os.system ['false']\n",
        b"epochs: 3 # three\nopt: 'muon'\noutput: |\n  runs\n  x\n",
    ]
    return seeds, written(lambda path: read_settings(TrainConfig, path), ".yaml")


def requests() -> tuple[list[bytes], Read]:
    """Bodies of requests to the server, whose answers must not be 5xx."""
    from starlette.testclient import TestClient

    from t2t_vit.deploy.app import make_app
    from t2t_vit.deploy.limits import Limits, Rejected
    from t2t_vit.deploy.service import Service
    from t2t_vit.inference.predictor import Predictor
    from t2t_vit.models.factory import create_model

    network = create_model("t2t_vit_7_32px", num_classes=2, embed_dim=32, depth=1, num_heads=2, token_dim=16).eval()
    service = Service(
        Predictor(network, device="cpu"), limits=Limits(max_bytes=100_000, max_pixels=1_000_000), max_wait_s=0
    )
    client = TestClient(make_app(service, starts_ready=True), raise_server_exceptions=False).__enter__()
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    form = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        + file.getvalue()
        + b"\r\n--b--\r\n"
    )
    infer = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    kinds = {
        b"1": ("/predict", "application/octet-stream", file.getvalue()),
        b"2": ("/predict", "multipart/form-data; boundary=b", form),
        b"3": ("/predict", "application/json", json.dumps({"images": [text]}).encode()),
        b"4": (f"/v2/models/{service.name}/infer", "application/json", json.dumps(infer).encode()),
        b"5": ("/attention", "application/octet-stream", file.getvalue()),
    }

    def send(content: bytes) -> object:
        path, kind, _ = kinds.get(content[:1], kinds[b"1"])
        response = client.post(path, content=content[1:], headers={"Content-Type": kind})
        if response.status_code >= 500:
            raise AssertionError(f"{response.status_code}: {response.text}")
        if response.status_code >= 400:
            raise Rejected(response.status_code, response.json()["error"])
        return response

    return [number + body for number, (_, _, body) in kinds.items()], send


TARGETS: dict[str, Callable[[], tuple[list[bytes], Read]]] = {
    "images": images, "arrays": arrays, "checkpoints": checkpoints, "onnx": onnx_files,
    "openvino": openvino_files, "metadata": onnx_metadata,
    "yaml": yaml_files, "requests": requests,
}  # fmt: skip


def memory_mb() -> float:
    """What this process holds in main memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def work(name: str, count: int, seed: int, pipe: Any, last: Path) -> None:
    """Feeds a target; sends its counts at the end. `last` holds the input that is being read."""
    torch.set_num_threads(1)
    from t2t_vit.deploy.limits import Rejected

    seeds, read = TARGETS[name]()
    for valid in seeds[:1]:
        read(valid)
    rng = random.Random(f"{name} {seed}")
    counts: dict[str, Any] = {"inputs": 0, "read": 0, "refused": 0, "failed": [], "slowest_s": 0.0}
    half_mb = 0.0
    for number in range(count):
        content = damage(seeds, rng)
        last.write_bytes(content)
        start = time.perf_counter()
        try:
            read(content)
            counts["read"] += 1
        except (UserError, Rejected):
            counts["refused"] += 1
        except BaseException as error:
            counts["failed"].append((f"{type(error).__name__}: {error}"[:200], content))
        counts["slowest_s"] = max(counts["slowest_s"], time.perf_counter() - start)
        counts["inputs"] += 1
        if number == count // 2:
            half_mb = memory_mb()
    counts["grown_mb"] = memory_mb() - half_mb
    pipe.send(counts)


def feed(names: Sequence[str], count: int, seed: int, keep: Path) -> Iterator[dict[str, Any]]:
    """Runs the targets, each in a process of its own."""
    keep.mkdir(parents=True, exist_ok=True)
    for name in names:
        ours, theirs = multiprocessing.Pipe()
        last = keep / f"{name}-last"
        last.touch()
        process = multiprocessing.get_context("spawn").Process(target=work, args=(name, count, seed, theirs, last))
        process.start()
        theirs.close()
        try:
            counts = ours.recv()
            last.unlink()
        except EOFError:
            counts = {
                "inputs": 0,
                "read": 0,
                "refused": 0,
                "failed": [("the process died", last.read_bytes())],
                "grown_mb": 0.0,
                "slowest_s": 0.0,
            }
        process.join()
        for number, (reason, content) in enumerate(counts["failed"][:20]):
            (keep / f"{name}-{number}").write_bytes(content)
            print(f"{name}: {reason}: {keep / f'{name}-{number}'}", file=sys.stderr)
        yield {"target": name, **counts, "failed": len(counts["failed"])}


def schemathesis(examples: int) -> int:
    """Requests made from the description of the interface, against a server of a small network, by schemathesis."""
    from t2t_vit.models.factory import create_model

    with tempfile.TemporaryDirectory() as folder:
        args = {"num_classes": 2, "embed_dim": 32, "depth": 1, "num_heads": 2, "token_dim": 16}
        network = create_model("t2t_vit_7_32px", **args)
        head = {"format": "t2t_vit", "version": 1, "model": "t2t_vit_7_32px", "model_args": args}
        torch.save({**head, "state_dict": network.state_dict()}, f"{folder}/best.pt")
        words = [sys.executable, "-m", "t2t_vit", "serve", "--checkpoint", folder, "--port", "8765"]
        server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            while "serving at" not in server.stderr.readline():
                pass
            time.sleep(3)
            url = "http://127.0.0.1:8765/openapi.json"
            words = [
                "schemathesis",
                "run",
                url,
                "--max-examples",
                str(examples),
                "--checks",
                "not_a_server_error",
                "--phases",
                "examples,coverage,fuzzing",
            ]
            return subprocess.run(words, check=False).returncode
        finally:
            server.terminate()
            server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=lambda text: text.split(","), default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--count", type=int, default=10_000, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="where inputs that failed are kept")
    parser.add_argument(
        "--schemathesis", type=int, default=0, metavar="EXAMPLES", help="of each operation, against a server"
    )
    words = parser.parse_args()
    table = new_table("target", "inputs", "read", "refused", "failed", "slowest, s", "grown, MB", num_words=1)
    failed = 0
    for row in feed(words.targets, words.count, words.seed, words.keep):
        failed += row["failed"]
        cells = (f"{row[name]:,}" for name in ("inputs", "read", "refused", "failed"))
        table.add_row(row["target"], *cells, f"{row['slowest_s']:.2f}", f"{row['grown_mb']:.1f}")
    print_table(table)
    return (schemathesis(words.schemathesis) if words.schemathesis else 0) or int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
