"""Exported files of others: opened where that is safe, and refused where it is not."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from t2t_vit import Predictor
from t2t_vit.errors import UserError
from t2t_vit.inference.exported import exported_file, read_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


GOOD = {
    "input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0, "interpolation": "bilinear",
}  # fmt: skip


def classifier(weights, *, size=8, channels=3, metadata=None, outputs=None):
    """An ONNX graph that multiplies flattened images by weights, (C H W, num_classes)."""
    helper, types = onnx.helper, onnx.TensorProto
    constants = [
        onnx.numpy_helper.from_array(weights.astype(np.float32), "weights"),
        onnx.numpy_helper.from_array(np.array([0, -1], dtype=np.int64), "shape"),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", types.FLOAT, ["n", channels, size, size])
    y = helper.make_tensor_value_info("y", types.FLOAT, ["n", outputs or weights.shape[1]])
    graph = helper.make_graph(nodes, "classifier", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {"t2t_vit": metadata})
    return model


@pytest.fixture
def weights():
    return np.random.default_rng(0).normal(size=(3 * 8 * 8, 4))


@pytest.fixture
def write(tmp_path):
    """Writes a graph, and returns its path."""

    def save(model, name="other.onnx"):
        onnx.save_model(model, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png", pixels


def about(**changes):
    content = {
        "version": 1, "model": "mine", "class_names": ["a", "b", "c", "d"],
        "data_config": GOOD,
    }  # fmt: skip
    return json.dumps(content | changes)


def by_hand(pixels, weights, mean, std):
    x = ((pixels / 255 - mean) / std).transpose(2, 0, 1).reshape(1, -1)
    return torch.from_numpy(x @ weights).softmax(-1)[0].tolist()


def test_a_file_of_others_is_prepared_for_as_imagenet_is(write, weights, image):
    path, pixels = image
    predictor = Predictor(write(classifier(weights)), device="cpu")
    assert "preparation: ImageNet's mean and deviation" in str(predictor.checkpoint.report)
    wanted = by_hand(pixels, weights, np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
    assert dict(predictor(path).labels) == pytest.approx(dict(zip("0123", wanted, strict=True)), abs=1e-4)


def test_a_file_says_how_it_is_prepared_for(write, weights, image):
    path, pixels = image
    predictor = Predictor(write(classifier(weights, metadata=about(calibration={"temperature": 2.0}))), device="cpu")
    wanted = by_hand(pixels, weights / 2, 0.5, 0.25)
    assert dict(predictor(path).labels) == pytest.approx(dict(zip("abcd", wanted, strict=True)), abs=1e-4)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "expected an object"),
        (about(version=99), "of version 99"),
        (about(class_names=["a", 1, "c", "d"]), "of its class_names is damaged"),
        (about(class_names=["a", "b"]), "names 2 classes, and its network tells 4 apart"),
        (about(data_config={"input_size": [3, 8]}), "of its data_config is damaged"),
        (about(data_config={"input_size": [3, 8, 10**9]}), "of its data_config is damaged"),
        (about(data_config={"std": [0.0, 1, 1]}), "of its data_config is damaged"),
        (about(data_config={"mean": "high"}), "of its data_config is damaged"),
        (about(data_config=None), "which is not what its network takes"),
        (about(data_config={"input_size": [3, 8, 8]}), "which is not what its network takes"),
        (about(data_config=GOOD | {"input_size": [3, 16, 8]}), "which is not what its network takes"),
        (about(data_config=GOOD | {"interpolation": "foo"}), "of its data_config is damaged"),
        (about(data_config=GOOD | {"std": [1, 1]}), "of its data_config is damaged"),
        (about(data_config=GOOD | {"crop_pct": 1e-9}), "of its data_config is damaged"),
        (about(data_config=GOOD | {"more": 1}), "of its data_config is damaged"),
        (about(calibration={"temperature": 10**400}), "of its calibration is damaged"),
        (about(calibration={"temperature": -1}), "of its calibration is damaged"),
        (about(calibration=[1]), "of its calibration is damaged"),
    ],
)
def test_damaged_metadata_is_refused(metadata, message, write, weights):
    with pytest.raises(UserError) as told:
        Predictor(write(classifier(weights, metadata=metadata)), device="cpu")
    assert message in str(told.value)


def test_weights_in_other_files_are_refused(write, weights, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(weights.astype(np.float32).tobytes())
    for place in ("initializer", "attribute"):
        model = classifier(weights)
        if place == "initializer":
            tensor = model.graph.initializer[0]
        else:
            node = onnx.helper.make_node("Constant", [], ["weights"], value=model.graph.initializer[0])
            del model.graph.initializer[0]
            model.graph.node.insert(0, node)
            tensor = model.graph.node[0].attribute[0].t
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="secret")
        for path in (tmp_path / f"{place}.onnx", tmp_path / f"{place}.ONNX"):
            path.write_bytes(model.SerializeToString())
            for runtime in ("onnxruntime", "openvino"):
                with pytest.raises(UserError, match="was refused: it takes weights from other files"):
                    Predictor(path, device="cpu", runtime=runtime)
        path = tmp_path / f"{place}.xml"  # OpenVINO itself would go by the content
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="is no file of OpenVINO's: expected XML"):
            Predictor(path, device="cpu")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_that_takes_one_image_at_a_time_is_given_one_at_a_time(runtime, write, weights):
    pytest.importorskip(runtime)
    images = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 90, 255)]
    free = [one.labels for one in Predictor(write(classifier(weights)), device="cpu", runtime=runtime)(images)]
    for batch, message in ((1, None), (4, "takes 4 images at a time")):
        model = classifier(weights)
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        path = write(model, f"batch{batch}.onnx")
        if message is None:
            found = [one.labels for one in Predictor(path, device="cpu", runtime=runtime)(images)]
            for ours, theirs in zip(found, free, strict=True):
                assert dict(ours) == pytest.approx(dict(theirs), abs=1e-6)
        else:
            with pytest.raises(UserError, match=message):
                Predictor(path, device="cpu", runtime=runtime)


def test_openvino_answers_several_threads_rightly(write, weights):
    pytest.importorskip("openvino")
    network = Predictor(write(classifier(weights)), device="cpu", runtime="openvino").network
    wrong = []

    def work(shade):
        images = torch.full((1, 3, 8, 8), shade)
        wanted = network(images)
        for _ in range(300):
            if not torch.equal(network(images), wanted):
                wrong.append(shade)

    threads = [threading.Thread(target=work, args=(shade,)) for shade in (0.1, 0.5, 0.9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"names"', b'"n\xffmes"', "OpenVINO cannot run .*: 'utf-8' codec"),
        (b'"Result"', b'"Sink"', "is no image classifier"),  # it has no output
        (b'"f32"', b'"i32"', "is no image classifier"),
        (b"<net", b"<met", "expected XML"),
    ],
)
def test_damaged_openvino_files_are_told(old, new, message, tmp_path, weights):
    openvino = pytest.importorskip("openvino")
    onnx.save_model(classifier(weights), tmp_path / "a.onnx")
    model = openvino.convert_model(tmp_path / "a.onnx")
    model.set_rt_info("names", ["t2t_vit"])
    openvino.save_model(model, tmp_path / "model.xml")
    content = (tmp_path / "model.xml").read_bytes().replace(b'<?xml version="1.0"?>\n', b"")
    assert old in content
    (tmp_path / "model.xml").write_bytes(content.replace(old, new))
    with pytest.raises(UserError, match=message):
        Predictor(tmp_path, device="cpu")


@pytest.mark.slow
def test_a_process_outlives_a_signal_after_its_openvino_networks(write, weights):
    pytest.importorskip("openvino")
    program = """
import faulthandler, gc, signal, sys
from t2t_vit import Predictor
faulthandler.enable()
first, second = (Predictor(sys.argv[1], device="cpu", runtime="openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""
    words = [sys.executable, "-c", program, str(write(classifier(weights)))]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "heard\n"), ended.stderr


def test_operators_of_others_are_refused(write, weights):
    model = classifier(weights)
    model.graph.node[0].domain = "evil.example"
    model.opset_import.append(onnx.helper.make_opsetid("evil.example", 1))
    with pytest.raises(UserError, match=r"needs operators of evil\.example"):
        Predictor(write(model), device="cpu")


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x0a", bytes(range(256)) * 20])
def test_what_is_no_onnx_is_told(content, tmp_path):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UserError, match="is no ONNX file, or is cut off or damaged"):
        read_onnx(tmp_path / "a.onnx")


def test_what_is_cut_off_is_told(write, weights):
    path = write(classifier(weights))
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            Predictor(path, device="cpu")


@pytest.mark.parametrize("settings", [{"channels": 2, "size": 8}])
def test_what_a_file_must_tell(settings, write):
    weights = np.ones((settings["channels"] * 64, 4))
    with pytest.raises(UserError, match="does not say how images are to be prepared"):
        Predictor(write(classifier(weights, **settings)), device="cpu")


def test_an_input_that_is_no_image_is_told(write, weights):
    model = classifier(weights)
    model.graph.input[0].type.tensor_type.shape.dim.pop()
    with pytest.raises(UserError, match=r"is no image classifier|cannot run"):
        Predictor(write(model), device="cpu")


def test_a_program_is_opened_for_those_who_trust_it_alone(tmp_path):
    program = torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "model.pt2")
    for path in (tmp_path, tmp_path / "model.pt2"):
        with pytest.raises(UserError, match=r"opening a \.pt2 file runs code"):
            Predictor(path, device="cpu")
    with pytest.raises(UserError, match="does not say how many classes"):
        Predictor(tmp_path, device="cpu", trust_code=True)


def test_settings_that_cannot_take_effect_are_told(write, weights, small_checkpoint):
    path = write(classifier(weights))
    for settings, message in [
        ({"runtime": "torch"}, "is run by onnxruntime or openvino, not by torch"),
        ({"amp": True}, "ONNX Runtime computes in the types of the file: leave out --amp"),
        ({"img_size": 16}, "is exported, and stays as it is: leave out --img-size"),
    ]:
        with pytest.raises(UserError, match=message):
            Predictor(path, device="cpu", **settings)
    with pytest.raises(UserError, match="is no exported file: leave out --runtime"):
        Predictor(small_checkpoint, device="cpu", runtime="openvino")
    with pytest.raises(UserError, match="there is no such file"):
        Predictor(path.with_name("none.onnx"), device="cpu")
    with pytest.raises(UserError, match="has no features to give"):
        list(Predictor(path, device="cpu")([Image.new("RGB", (8, 8))], embed=True))


def test_a_folder_of_a_run_is_no_export(tmp_path, small_checkpoint):
    (tmp_path / "model.onnx").write_bytes(b"")
    assert exported_file(tmp_path) == tmp_path / "model.onnx"
    (tmp_path / "best.pt").write_bytes(b"")
    assert exported_file(tmp_path) is None
    assert exported_file(tmp_path / "model.onnx") == tmp_path / "model.onnx"
