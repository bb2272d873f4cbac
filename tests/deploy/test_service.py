"""The HTTP interface: what it answers, and what it refuses with which status."""

import base64
import io
import json
import re
import threading
import time
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from t2t_vit import Predictor
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.deploy.limits import KEY_VARIABLE, Limits, Rejected, decode

pytest.importorskip("fastapi")
testclient = pytest.importorskip("starlette.testclient")

from t2t_vit.deploy.app import make_app  # noqa: E402 (fastapi may not be there)
from t2t_vit.deploy.service import Service  # noqa: E402

LIMITS = Limits(max_bytes=300_000, max_pixels=1_000_000, max_images=4, timeout_s=5)
BYTES = {"Content-Type": "application/octet-stream"}


def encoded(pixels, format="PNG", **settings):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(small_checkpoint):
    return Predictor(small_checkpoint, device="cpu")


@contextmanager
def open_client(predictor, **settings):
    app = make_app(Service(predictor, **{"limits": LIMITS, "max_wait_s": 0.001, **settings}), starts_ready=True)
    with testclient.TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/ready").status_code == 200
        yield client


def wait_until_ready(client):
    deadline = time.monotonic() + 10
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def client(predictor):
    with open_client(predictor) as opened:
        yield opened


@pytest.fixture(scope="module")
def wanted(predictor, pixels):
    return dict(predictor(Image.fromarray(pixels)).labels)


def labels(result):
    return {one["label"]: one["probability"] for one in result["labels"]}


def test_one_image_as_bytes_form_or_json(client, pixels, wanted):
    content = encoded(pixels)
    text = base64.b64encode(content).decode()
    for body in (
        {"content": content, "headers": BYTES},
        {"content": content, "headers": {"Content-Type": "image/png"}},
        {"files": {"image": ("a.png", content)}},
        {"json": {"images": [text]}},
        {"json": {"images": [f"data:image/png;base64,{text}"]}},
    ):
        response = client.post("/predict?top_k=3", **body)
        assert response.status_code == 200, response.text
        (result,) = response.json()["results"]
        assert labels(result) == pytest.approx(wanted, abs=1e-5)
    assert response.json()["model"] == "t2t_vit_7_32px"
    assert len(client.post("/predict?top_k=1", content=content, headers=BYTES).json()["results"][0]["labels"]) == 1


def test_several_images_keep_their_order_and_names(client, predictor):
    arrays = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    files = [("image", (f"{row}.png", encoded(array))) for row, array in enumerate(arrays)]
    results = client.post("/predict?top_k=3", files=files).json()["results"]
    assert [result["name"] for result in results] == ["0.png", "1.png", "2.png", "3.png"]
    for result, array in zip(results, arrays, strict=True):
        assert labels(result) == pytest.approx(dict(predictor(Image.fromarray(array)).labels), abs=1e-5)


def png_of(width, height):
    """A PNG that says it has so many pixels, and holds a few bytes of zeros."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    zeros = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 422, "image is empty"),
        (b"no image at all", 415, "is no image of a format that is read"),
        (SVG, 415, "is no image of a format that is read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "is no image of a format that is read"),
        (b"PK\x03\x04" + bytes(100), 415, "is no image of a format that is read"),
        (b"\x93NUMPY\x01\x00", 415, "is no image of a format that is read"),
        (png_of(10_000, 10_000), 413, "more than 1,000,000"),
        (png_of(1000, 1001), 413, "1000 x 1001 pixels, more than 1,000,000"),
        (png_of(100_000, 100_000), 413, "more than 1,000,000"),
        (png_of(20_000, 1), 413, "is too narrow: 20000 x 1 pixels"),
        (png_of(900, 900), 422, "is not a readable image"),
        (bytes(400_000), 413, "the body has more than 300,000 bytes"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(content, status, reason, client):
    response = client.post("/predict", content=content, headers=BYTES)
    assert response.status_code == status
    assert reason in response.json()["error"]
    assert client.get("/ready").status_code == 200


def test_a_narrow_array_is_refused_too():
    def transform(picture):
        raise AssertionError("it would be enlarged")

    file = io.BytesIO()
    np.save(file, np.zeros((1, 20_000, 4), np.uint8))
    with pytest.raises(Rejected, match="too narrow: 20000 x 1 pixels"):
        decode(
            file.getvalue(), name="it", format=PixelFormat(4), transform=transform, shorter_px=32, limits=LIMITS
        )  # fmt: skip


def test_a_cut_off_image_is_refused(client, pixels):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        content = encoded(pixels, format)
        response = client.post("/predict", content=content[: len(content) // 2], headers=BYTES)
        assert response.status_code in (415, 422), format
        assert response.json()["error"]


def test_a_body_without_a_length_is_counted(client):
    def chunks():
        for _ in range(10):
            yield bytes(100_000)

    response = client.post("/predict", content=chunks(), headers=BYTES)
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 422),
        ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 422),
        ({"json": {"images": []}}, 422),
        ({"json": {"images": ["not base64!"]}}, 422),
        ({"json": {"images": ["AAAA"] * 5}}, 413),
        ({"json": {"image": "AAAA"}}, 422),
        ({"data": {"image": "text"}, "files": {"x": ("", b"")}}, 422),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 400),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        ({"content": b"a=b", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 415),
        ({"files": [("image", ("a", b"x"))] * 5}, 413),
    ],
)
def test_a_wrong_body_is_the_callers_fault(body, status, client):
    response = client.post("/predict", **body)
    assert response.status_code == status, response.text
    assert response.json()["error"]


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape"])
def test_odd_names_of_files_are_made_text(charset, client, pixels):
    name = {"utf-7": b"+2AA-", "unicode_escape": rb"\ud800"}[charset]
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="' + name + b'"\r\n\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = client.post("/predict", content=head + encoded(pixels) + b"\r\n--b--\r\n", headers=kind)
    assert response.status_code == 200
    assert response.json()["results"][0]["name"] == "?"


def test_what_is_pending_is_bounded_and_let_go(predictor, pixels):
    limits = Limits(max_pending_bytes=10_000)
    service = Service(predictor, limits=limits)
    with testclient.TestClient(make_app(service)) as client:
        wait_until_ready(client)
        assert client.post("/predict", content=bytes(20_000), headers=BYTES).status_code == 429
        assert service.num_pending_bytes == 0
        assert client.post("/predict", content=encoded(pixels), headers=BYTES).status_code == 200
        assert service.num_pending_bytes == 0


def test_another_host_is_refused_on_loopback(predictor):
    service = Service(predictor, limits=LIMITS)
    client = testclient.TestClient(make_app(service, hosts=["127.0.0.1"]))
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/health", headers={"Host": "127.0.0.1:8000"}).status_code == 200
    service.decoders.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_every_way_of_asking_at_once_gives_right_answers(runtime, predictor, small_checkpoint, tmp_path, pixels):
    for package in ("onnxscript", runtime):
        pytest.importorskip(package)
    from t2t_vit.deploy.export import source_of
    from t2t_vit.deploy.formats import write_onnx

    write_onnx(source_of(Predictor(small_checkpoint, device="cpu")), tmp_path)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = predictor.probabilities(predictor.network(images)).flatten().tolist()
    tensor = {"name": "images", "shape": [3, 3, 32, 32], "datatype": "FP32", "data": images.flatten().tolist()}
    wanted, content = dict(predictor(Image.fromarray(pixels)).labels), encoded(pixels)
    wrong: list[object] = []

    def infer():
        for _ in range(40):
            answer = client.post("/v2/models/t2t_vit_7_32px/infer", json={"inputs": [tensor]}).json()
            if answer["outputs"][0]["data"] != pytest.approx(expected, abs=1e-4):
                wrong.append(answer)

    def predict():
        for _ in range(40):
            (result,) = client.post("/predict", content=content, headers=BYTES).json()["results"]
            if labels(result) != pytest.approx(wanted, abs=1e-4):
                wrong.append(result)

    with open_client(Predictor(tmp_path, device="cpu", runtime=runtime)) as client:
        threads = [threading.Thread(target=target) for target in (infer, predict, infer, predict)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_wrong_paths_methods_and_numbers_are_told(client):
    assert client.get("/nowhere").status_code == 404
    assert client.get("/predict").status_code == 405
    response = client.post("/predict?top_k=0", content=b"x", headers=BYTES)
    assert (response.status_code, "top_k" in response.json()["error"]) == (422, True)


def test_a_key_is_asked_for_where_there_is_one(client, pixels, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "clé")
    response = client.post("/predict", content=encoded(pixels), headers={**BYTES, "X-API-Key": "clé".encode()})
    assert response.status_code == 200
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    content = encoded(pixels)
    assert client.post("/predict", content=content, headers=BYTES).status_code == 401
    assert client.post("/predict", content=content, headers={**BYTES, "X-API-Key": "wrong"}).status_code == 401
    assert client.get("/metrics").status_code == 401
    for header in ({"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}):
        assert client.post("/predict", content=content, headers={**BYTES, **header}).status_code == 200
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 200
    assert client.get("/model.json").json()["needs_key"] is True


class Blocked:
    """A predictor whose network answers when it is let."""

    def __init__(self, predictor):
        self.predictor, self.may_answer = predictor, threading.Event()
        self.may_answer.set()

    def answer(self, images, **settings):
        self.may_answer.wait(20)
        return self.predictor.answer(images, **settings)

    def __getattr__(self, name):
        return getattr(self.predictor, name)


def test_a_full_queue_says_try_again(predictor, pixels):
    blocked, content = Blocked(predictor), encoded(pixels)
    with open_client(blocked, capacity=2, max_batch=1) as client:
        blocked.may_answer.clear()
        found: list[int] = []

        def ask():
            response = client.post("/predict", content=content, headers=BYTES)
            found.append(response.status_code)
            if response.status_code == 429:
                assert response.headers["Retry-After"] == "1"
                assert "waiting" in response.json()["error"]

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 4
        while len(found) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found == [429] * 5  # one is computed, two wait
        blocked.may_answer.set()
        for thread in threads:
            thread.join()
        assert sorted(found) == [200] * 3 + [429] * 5
        assert client.post("/predict", content=content, headers=BYTES).status_code == 200


def test_what_takes_too_long_is_given_up(predictor, pixels):
    blocked, content = Blocked(predictor), encoded(pixels)
    limits = Limits(timeout_s=0.3)
    with open_client(blocked, limits=limits) as client:
        blocked.may_answer.clear()
        response = client.post("/predict", content=content, headers=BYTES)
        assert (response.status_code, response.json()) == (504, {"error": "no answer within 0.3 s"})
        blocked.may_answer.set()
        assert client.post("/predict", content=content, headers=BYTES).status_code == 200


def test_a_failure_of_the_network_is_a_500_and_the_next_is_answered(predictor, pixels, caplog):
    class Fails(Blocked):
        fails = False

        def answer(self, images, **settings):
            if self.fails:
                raise RuntimeError("out of memory at 0xDEAD")
            return super().answer(images, **settings)

    failing, content = Fails(predictor), encoded(pixels)
    with open_client(failing) as client:
        failing.fails = True
        response = client.post("/predict", content=content, headers=BYTES)
        assert response.status_code == 500
        assert "0xDEAD" not in response.text
        failing.fails = False
        assert client.post("/predict", content=content, headers=BYTES).status_code == 200


def test_before_it_is_ready_it_says_so(predictor, pixels):
    service = Service(predictor, limits=LIMITS)
    client = testclient.TestClient(make_app(service))  # not entered: it has not started
    for path in ("/ready", "/v2/health/ready", "/v2/models/t2t_vit_7_32px/ready"):
        assert client.get(path).status_code == 503
    response = client.post("/predict", content=encoded(pixels), headers=BYTES)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert client.get("/health").status_code == 200
    service.decoders.shutdown()


def test_counts_are_there_for_prometheus(predictor, pixels):
    with open_client(predictor) as client:
        for _ in range(3):
            client.post("/predict", content=encoded(pixels), headers=BYTES)
        client.post("/predict", content=b"x", headers=BYTES)
        text = client.get("/metrics").text
    assert 't2t_vit_requests_total{path="/predict",status="200"} 3.0' in text
    assert 't2t_vit_requests_total{path="/predict",status="415"} 1.0' in text
    assert "t2t_vit_images_total 3.0" in text
    assert float(re.search(r"t2t_vit_request_seconds_count (\S+)", text)[1]) >= 4


def test_attention_of_each_layer(client, predictor, pixels):
    found = client.post("/attention", content=encoded(pixels), headers=BYTES).json()
    assert found["layers"] == client.get("/model.json").json()["layers"] == ["blocks.0.attn"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["maps"][0]))))
    assert picture.shape == (found["height"], found["width"]) == (32, 32)
    assert picture.max() == 255
    assert picture.min() < 250


def test_an_exported_network_has_no_attention_to_show(small_checkpoint, tmp_path, pixels):
    pytest.importorskip("onnxruntime")
    from t2t_vit.deploy.export import source_of
    from t2t_vit.deploy.formats import write_onnx

    write_onnx(source_of(Predictor(small_checkpoint, device="cpu")), tmp_path)
    exported = Predictor(tmp_path, device="cpu")
    with open_client(exported) as client:
        assert client.get("/model.json").json()["layers"] == []
        assert client.post("/attention", content=encoded(pixels), headers=BYTES).status_code == 404
        (result,) = client.post("/predict", content=encoded(pixels), headers=BYTES).json()["results"]
    assert labels(result) == pytest.approx(dict(exported(Image.fromarray(pixels)).labels), abs=1e-5)


def test_the_open_inference_protocol(client, predictor, pixels, wanted):
    name = "t2t_vit_7_32px"
    about = client.get(f"/v2/models/{name}").json()
    assert [(one["name"], one["datatype"]) for one in about["inputs"]] == [("image", "BYTES"), ("images", "FP32")]
    assert about["outputs"][0]["shape"] == [-1, 3]
    assert client.get("/v2").json()["name"] == "t2t_vit"
    assert client.get("/v2/health/live").status_code == 200
    text = base64.b64encode(encoded(pixels)).decode()
    files = {"name": "image", "shape": [2], "datatype": "BYTES", "data": [text, text]}
    answer = client.post(f"/v2/models/{name}/infer", json={"id": "7", "inputs": [files]}).json()
    found = {one["name"]: one for one in answer["outputs"]}
    assert (answer["id"], answer["model_name"]) == ("7", name)
    assert found["probabilities"]["shape"] == [2, 3]
    assert found["probabilities"]["data"][:3] == pytest.approx(
        [wanted[label] for label in predictor.class_names], abs=1e-5
    )
    assert found["label"]["data"] == [max(wanted, key=wanted.__getitem__)] * 2
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = predictor.probabilities(predictor.network(images)).flatten().tolist()
    for data in (images.tolist(), images.flatten().tolist()):
        tensor = {"name": "images", "shape": [2, 3, 32, 32], "datatype": "FP32", "data": data}
        answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
        assert answer.json()["outputs"][0]["data"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "tensor", "status"),
    [
        ("other", {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}, 404),
        ("t2t_vit_7_32px", {"name": "image", "shape": [2], "datatype": "BYTES", "data": ["AAAA"]}, 422),
        ("t2t_vit_7_32px", {"name": "image", "shape": [1], "datatype": "BYTES", "data": [7]}, 422),
        ("t2t_vit_7_32px", {"name": "x", "shape": [], "datatype": "BYTES", "data": []}, 422),
        ("t2t_vit_7_32px", {"name": "x", "shape": [-1], "datatype": "BYTES", "data": []}, 422),
        ("t2t_vit_7_32px", {"name": "x", "shape": [10**9], "datatype": "BYTES", "data": []}, 413),
        ("t2t_vit_7_32px", {"name": "images", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [0.5]}, 422),
        ("t2t_vit_7_32px", {"name": "images", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}, 422),
        ("t2t_vit_7_32px", {"name": "images", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [1e60] * 3072}, 422),
        ("t2t_vit_7_32px", {"name": "images", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": ["a"] * 3072}, 422),
        ("t2t_vit_7_32px", {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}, 422),
        ("t2t_vit_7_32px", {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}, 422),
        ("t2t_vit_7_32px", {"name": "image", "shape": [True], "datatype": "BYTES", "data": ["AAAA"]}, 422),
        (
            "t2t_vit_7_32px",
            {"name": "images", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [10**400] + [0.5] * 3071},
            422,
        ),
        ("t2t_vit_7_32px", {"name": "images", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [[]] * 3072}, 422),
    ],
)
def test_wrong_tensors_are_told(name, tensor, status, client):
    response = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert response.status_code == status, response.text
    assert response.json()["error"]


def test_the_page_asks_nobody_else(client):
    page = client.get("/").text
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "").replace("viaHttp", "").replace('"http"', "")


def test_the_interface_describes_itself(client):
    schema = client.get("/openapi.json").json()
    assert {"/predict", "/attention", "/health", "/ready", "/metrics", "/v2/models/{name}/infer"} <= set(
        schema["paths"]
    )
    bodies = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"application/octet-stream", "multipart/form-data", "application/json"}
    assert {"413", "415", "422", "429", "503"} <= set(schema["paths"]["/predict"]["post"]["responses"])
    assert "$ref" not in json.dumps(schema["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"])  # to nowhere
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(schema))
    assert set(references) <= set(schema["components"]["schemas"])
