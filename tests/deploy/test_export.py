"""Exports: what is written, opened again, compared with the original, and refused."""

import base64
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from t2t_vit import Predictor
from t2t_vit.cli import main
from t2t_vit.deploy.config import ExportConfig
from t2t_vit.deploy.fidelity import compare
from t2t_vit.deploy.formats import WEB_FILES
from t2t_vit.errors import UserError
from t2t_vit.options import configure
from t2t_vit.runtime.files import plain

SPLIT = {"kind": "stratified", "val_fraction": 0.2, "seed": 42, "num_train": 80, "num_val": 20, "fingerprint": "0"}
CALIBRATION = {"temperature": 0.5, "error_percent_before": 9.0, "error_percent_after": 1.5, "num_images": 20}
COMPILES = pytest.mark.timeout(300)  # it takes 40 s of a core, and minutes beside other work
CHOSEN = {"step": 5, "epoch": 1, "weights": "last weights", "top1": 87.5, "num_images": 20, "balanced": 87.0}


@pytest.fixture(scope="module", autouse=True)
def _speed_is_measured_shortly():
    from t2t_vit.deploy import fidelity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "ROUND_S", 0.0)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, write_small_checkpoint):
    """A checkpoint that says all that one can say, of classes that need care in a table."""
    return write_small_checkpoint(
        tmp_path_factory.mktemp("run") / "best.pt",
        class_names=["ant", "bee | `x`", "Käfer"],
        data_config={
            "input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "crop_pct": 1.0,
            "interpolation": "bicubic", "background": "white",
        },
        split=SPLIT, calibration=CALIBRATION, chosen=CHOSEN,
    )  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty images as files, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(1).integers(0, 256, (60, 9, 9, 3), dtype=np.uint8)
    for row, array in enumerate(pixels):
        Image.fromarray(array).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{row:02}.png")
    (folder / "07.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def export(checkpoint, tmp_path_factory):
    """Exports once for each format and further words; returns the folder."""
    done: dict[tuple[str, ...], Path] = {}

    def make(*words):
        if words not in done:
            folder = tmp_path_factory.mktemp("exports") / "-".join(
                word.lstrip("-") for word in words if "/" not in word
            )
            assert main(["export", "--checkpoint", str(checkpoint), "--output", str(folder), "--format", *words]) == 0
            done[words] = folder
        return done[words]

    return make


def probabilities(predictor, photos):
    """Of each readable photo, by the name of the class."""
    return {
        prediction.name: dict(prediction.labels)
        for prediction in predictor(sorted(photos.glob("*.png")), workers=0, batch_size=7)
        if prediction.error is None
    }


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(abs(one[name][label] - other[name][label]) for name in one for label in one[name])


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("onnx",), "ONNX Runtime"),
        (("onnx", "--any-size"), "ONNX Runtime"),
        (("openvino",), "OpenVINO"),
        (("safetensors",), None),
        (("pt2",), "torch.export"),
        pytest.param(("aotinductor",), "AOTInductor", marks=COMPILES),
    ],
)
def test_an_export_answers_as_the_checkpoint(words, kind, checkpoint, photos, export):
    original = Predictor(checkpoint, device="cpu")
    folder = export(*words)
    exported = Predictor(folder, device="cpu", trust_code=words[0] in ("pt2", "aotinductor"))
    assert (exported.class_names, exported.temperature) == (original.class_names, 0.5)
    assert plain(exported.data_config) == plain(original.data_config)
    assert largest_difference(probabilities(original, photos), probabilities(exported, photos)) < 1e-5
    assert exported.checkpoint.extra["split"] == SPLIT
    assert kind is None or f"exported network, which {kind} runs" in str(exported.checkpoint.report)


@pytest.mark.parametrize("format", ["onnx", "openvino", "pt2"])
def test_any_size_is_taken_where_it_was_asked_for(format, export):
    network = Predictor(export(format, "--any-size"), device="cpu", trust_code=format == "pt2").network
    assert network(torch.zeros(2, 3, 48, 64)).shape == (2, 3)


@pytest.mark.parametrize("format", ["onnx", "openvino", "pt2", pytest.param("aotinductor", marks=COMPILES)])
def test_another_size_is_refused(format, export):
    """What AOTInductor compiled would read beside the image."""
    network = Predictor(export(format), device="cpu", trust_code=format in ("pt2", "aotinductor")).network
    with pytest.raises(UserError, match=r"takes images of 3 x 32 x 32, got 3 x 48 x 64"):
        network(torch.zeros(2, 3, 48, 64))


def eight_bit_inputs(folder, kinds):
    """How many operations of some kinds have an input that was rounded to 8 bits, and how many there are."""
    openvino = pytest.importorskip("openvino")
    operations = [
        one for one in openvino.Core().read_model(folder / "model.xml").get_ops() if one.get_type_name() in kinds
    ]
    rounded = [
        any(value.get_source_output().get_node().get_type_name() == "FakeQuantize" for value in one.inputs())
        for one in operations
    ]
    return sum(rounded), len(operations)


def test_eight_bits_leave_the_convolutions_of_a_transformer_and_not_those_of_a_cnn(photos, export, tmp_path):
    folder = export("openvino-int8", "--calibrate", str(photos), "--least-agreement", "80")
    rounded, convolutions = eight_bit_inputs(folder, {"Convolution", "GroupConvolution"})
    assert (rounded, convolutions > 0) == (0, True)
    rounded, products = eight_bit_inputs(folder, {"MatMul"})
    assert 0 < rounded < products  # products of activations are left too
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "cnn.pt")
    words = ["--model", "test_resnet", "--img-size", "32", "--calibrate", str(photos), "--least-agreement", "0"]
    words += ["--checkpoint", str(tmp_path / "cnn.pt"), "--output", str(tmp_path / "cnn")]
    assert main(["export", "--format", "openvino-int8", *words]) == 0
    rounded, _ = eight_bit_inputs(tmp_path / "cnn", {"Convolution"})
    assert rounded > 0


def test_openvino_runs_the_onnx_file_too(checkpoint, photos, export):
    exported = Predictor(export("onnx") / "model.onnx", device="cpu", runtime="openvino")
    assert "OpenVINO" in str(exported.checkpoint.report)
    original = Predictor(checkpoint, device="cpu")
    assert largest_difference(probabilities(original, photos), probabilities(exported, photos)) < 1e-5
    half = Predictor(export("onnx") / "model.onnx", device="cpu", runtime="openvino", amp=True)
    assert 0 < largest_difference(probabilities(original, photos), probabilities(half, photos)) < 0.2


@pytest.mark.parametrize("format", ["onnx-int8", "openvino-int8"])
def test_eight_bits_are_near(format, checkpoint, photos, export):
    folder = export(format, "--calibrate", str(photos), "--least-agreement", "80")
    exported = Predictor(folder, device="cpu")
    difference = largest_difference(
        probabilities(Predictor(checkpoint, device="cpu"), photos), probabilities(exported, photos)
    )
    assert 1e-4 < difference < 0.5  # no float32 any more, and no other network
    assert exported.temperature == 0.5


def test_dynamic_eight_bits_need_no_images(checkpoint, photos, export):
    exported = Predictor(export("onnx-int8", "--dynamic", "--least-agreement", "80"), device="cpu")
    original = Predictor(checkpoint, device="cpu")
    assert 1e-4 < largest_difference(probabilities(original, photos), probabilities(exported, photos)) < 0.3


def test_any_size_takes_another_size(checkpoint, export):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).normal(size=(3, 3, 48, 40)).astype(np.float32)
    session = onnxruntime.InferenceSession(export("onnx", "--any-size") / "model.onnx")
    (found,) = session.run(None, {"images": images})
    network = Predictor(checkpoint, device="cpu", dynamic_img_size=True).network
    with torch.inference_mode():
        assert found == pytest.approx(network(torch.from_numpy(images)).numpy(), abs=1e-4)
    fixed = onnxruntime.InferenceSession(export("onnx") / "model.onnx")
    assert fixed.get_inputs()[0].shape == ["batch", 3, 32, 32]
    with pytest.raises(Exception, match="invalid dimensions"):
        fixed.run(None, {"images": images})


def test_timm_loads_the_folder(checkpoint, export):
    network = timm.create_model(f"local-dir:{export('safetensors')}", pretrained=True).eval()
    assert network.pretrained_cfg["label_names"] == ["ant", "bee | `x`", "Käfer"]
    assert timm.data.resolve_model_data_config(network)["mean"] == pytest.approx((0.4, 0.5, 0.6))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(images), Predictor(checkpoint, device="cpu").network(images))
    config = json.loads((export("safetensors") / "config.json").read_text(encoding="utf-8"))
    assert "num_classes" not in config["model_args"]


def test_the_page_with_the_network_is_whole(checkpoint, export, tmp_path, capsys):
    (tmp_path / "npm" / "dist").mkdir(parents=True)
    words = ["export", "--checkpoint", str(checkpoint), "--format", "web", "--onnxruntime-web", str(tmp_path / "npm")]
    assert main([*words, "--output", str(tmp_path / "page")]) == 2
    assert "is no onnxruntime-web: it has no dist/ort.wasm.min.mjs" in capsys.readouterr().err
    for name in WEB_FILES:
        (tmp_path / "npm" / "dist" / name).write_text(name)
    assert main([*words, "--output", str(tmp_path / "page")]) == 0
    folder = tmp_path / "page"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "index.html",
        "model.json",
        "model.onnx",
        *WEB_FILES,
    }
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert (about["engine"], about["temperature"], about["classes"]) == ("onnx", 0.5, ["ant", "bee | `x`", "Käfer"])
    assert about["data_config"]["mean"] == [0.4, 0.5, 0.6]


@pytest.mark.slow
def test_transformers_loads_the_folder(checkpoint, photos, export):
    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline("image-classification", model=str(export("safetensors")), device="cpu")
    found = {entry["label"]: entry["score"] for entry in pipeline(str(photos / "01.png"), top_k=3)}
    original = Predictor(checkpoint, device="cpu")
    original.temperature = 1.0  # of which transformers knows nothing
    assert found == pytest.approx(dict(original(photos / "01.png").labels), abs=1e-3)


def test_the_card_tells_what_is_known(export):
    card = (export("onnx") / "README.md").read_text(encoding="utf-8")
    assert "87.50 % of 20 validation images" in card
    assert "`ant`, `bee \\| 'x'`, `Käfer`" in card
    assert "divided by 0.500" in card
    assert "then 1.5 %, before 9.0 %" in card
    assert "| the same label | 100.00 % |" in card
    assert "/tmp" not in card
    assert "/tmp" not in (export("onnx") / "model.onnx").read_bytes().decode("latin-1")  # nor of the code's files
    assert "site-packages" not in (export("onnx") / "model.onnx").read_bytes().decode("latin-1")


def test_what_was_exported_is_evaluated_and_predicts(photos, export, capsys):
    assert main(["predict", str(photos / "01.png"), "--checkpoint", str(export("onnx")), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    best = Predictor(export("onnx"), device="cpu")(photos / "01.png").labels[0]
    assert (found["labels"][0]["label"], found["labels"][0]["probability"]) == pytest.approx(best, abs=1e-6)


def test_a_comparison_sees_another_network(checkpoint, photos):
    original, other = Predictor(checkpoint, device="cpu"), Predictor(checkpoint, device="cpu")
    other.network.head.weight.data = other.network.head.weight.data.roll(1, 0)
    images = [path for path in sorted(photos.glob("*.png")) if path.name != "07.png"]
    found = compare(original, other, images)
    assert found.num_images == 59
    assert found.agreement_percent < 60
    assert found.largest_difference > 0.1
    other = Predictor(checkpoint, device="cpu", data_config={**original.data_config, "mean": (0.0, 0.0, 0.0)})
    assert compare(original, other, images).largest_difference > 0.01  # from the bytes of the files on
    assert found.images_per_second > 0 < found.latency_ms


def test_what_does_not_agree_is_not_written(checkpoint, photos, tmp_path, capsys, monkeypatch):
    from t2t_vit.deploy import formats

    def write_another(source, folder):
        with torch.no_grad():
            source.network.head.weight.mul_(-1)
        formats.write_safetensors(source, folder)
        with torch.no_grad():
            source.network.head.weight.mul_(-1)

    monkeypatch.setitem(formats.WRITERS, "safetensors", write_another)
    words = ["--checkpoint", str(checkpoint), "--format", "safetensors", "--output", str(tmp_path / "out")]
    assert main(["export", *words, "--images", str(photos)]) == 2
    told = capsys.readouterr().err
    assert "What was written does not answer as the original: " in told
    assert "of 59 images have the same label, at least 99 % must (--least-agreement); a probability differs" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "onnx-int8"}, "needs --calibrate: some hundred images of the kind it will see, or --dynamic"),
        ({"format": "openvino-int8"}, "needs --calibrate: some hundred images of the kind it will see."),
        ({"format": "onnx", "calibrate": ("a",)}, "--calibrate has no effect on --format onnx"),
        ({"format": "onnx", "dynamic": True}, "--dynamic has no effect on --format onnx"),
        ({"format": "onnx-int8", "dynamic": True, "calibrate": ("a",)}, "leave one of them out"),
        ({"format": "safetensors", "any_size": True}, "--any-size has no effect on --format safetensors"),
        ({"format": "onnx", "push": "name"}, "--push takes USER/NAME, got name"),
    ],
)
def test_contradictions_are_told(settings, message, tmp_path):
    with pytest.raises(UserError) as told:
        configure(ExportConfig, checkpoint="a.pt", output=str(tmp_path / "new"), **settings)
    assert message in str(told.value)


def test_what_is_there_is_not_overwritten(checkpoint, photos, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    words = ["export", "--checkpoint", str(checkpoint), "--format", "safetensors", "--output"]
    assert main([*words, str(tmp_path)]) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    assert main([*words, str(tmp_path / "new")]) == 0
    assert main([*words, str(tmp_path / "other"), "--images", str(photos / "07.png")]) == 2
    assert "None of the 1 images can be read" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "other"), "--checkpoint", str(tmp_path / "new")]) == 0  # a checkpoint too
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "new", "other"]


def test_an_export_is_no_checkpoint_to_export(export, tmp_path, capsys):
    words = ["export", "--checkpoint", str(export("onnx")), "--format", "onnx", "--output", str(tmp_path / "again")]
    assert main(words) == 2
    assert "is exported already: give the checkpoint" in capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for Hugging Face's hub on loopback, which keeps what is committed to it."""
    files: dict[str, bytes] = {}
    uploads: dict[str, bytes] = {}
    refuses: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content, status=200):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            assert self.headers["Authorization"] == "Bearer hf_test"
            if refuses:
                self.answer({"error": "no"}, refuses[0])
            elif self.path == "/api/repos/create":
                assert json.loads(body)["name"] == "bugs"
                self.answer({"url": f"{self.url}/ann/bugs"})
            elif self.path == "/api/validate-yaml":
                self.answer({"warnings": [], "errors": []})
            elif self.path.startswith("/api/models/ann/bugs/preupload/"):
                asked = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["size"] > 20_000 else "regular", "shouldIgnore": False}
                    for f in asked
                ]
                self.answer({"files": modes})
            elif self.path == "/ann/bugs.git/info/lfs/objects/batch":
                objects = [
                    {**one, "actions": {"upload": {"href": f"{self.url}/upload/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self.answer({"transfer": "basic", "objects": objects})
            elif self.path.startswith("/api/models/ann/bugs/commit/"):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = uploads[value["oid"]]
                self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/ann/bugs/commit/0"})
            else:
                self.answer({"error": self.path}, 404)

        def do_PUT(self):
            content = b""
            if self.headers["Transfer-Encoding"] == "chunked":
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                content = self.rfile.read(int(self.headers["Content-Length"]))
            uploads[self.path.rpartition("/")[2]] = content
            self.answer({})

        def do_GET(self):
            self.answer(
                {"id": "ann/bugs", "siblings": [], "sha": "0" * 40, "private": False, "tags": [], "downloads": 0}
            )

        do_HEAD = do_GET  # noqa: N815

        @property
        def url(self):
            return f"http://127.0.0.1:{self.server.server_port}"

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    from huggingface_hub import HfApi, constants

    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=url))
    yield files, refuses
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub to its HTTP library
def test_a_folder_is_pushed(hub, checkpoint, tmp_path, capsys):
    files, refuses = hub
    words = ["export", "--checkpoint", str(checkpoint), "--format", "safetensors", "--push", "ann/bugs", "--output"]
    assert main([*words, str(tmp_path / "out")]) == 0
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert "pushed: http://127.0.0.1" in capsys.readouterr().out
    refuses.append(403)
    assert main([*words, str(tmp_path / "again")]) == 2
    told = capsys.readouterr().err
    assert "ann/bugs could not be pushed: " in told
    assert "hf upload ann/bugs" in told
    assert (tmp_path / "again" / "model.safetensors").exists()
