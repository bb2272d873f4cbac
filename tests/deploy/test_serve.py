"""The server as a process: started, loaded, killed in part, and stopped; and its page in a real browser."""

import base64
import contextlib
import http.client
import http.server
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_vit import Predictor
from t2t_vit.cli import main
from t2t_vit.deploy import serve as serve_module
from t2t_vit.deploy.config import ServeConfig
from t2t_vit.deploy.on_ray import absolute
from t2t_vit.options import configure

for package in ("fastapi", "uvicorn", "prometheus_client", "multipart"):
    pytest.importorskip(package)

KEY = "open"
BYTES = {"Content-Type": "application/octet-stream", "X-API-Key": KEY}


def start(checkpoint, *words, **environment):
    """Starts a server on a free port; returns its process and the port when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "t2t_vit", "serve", "--checkpoint", str(checkpoint), "--port", "0", *words],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    port = None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+) ", line):
            port = int(found[1])
            break
    process.reader = threading.Thread(target=process.stderr.read)  # or it would wait for one
    process.reader.start()
    assert port is not None
    deadline = time.monotonic() + 60
    while True:
        try:
            if ask(port, "GET", "/ready")[0] == 200:
                return process, port
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ask(port, method, path, body=None, headers=BYTES, timeout=30):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=headers if body is not None else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(40)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.reader.join(10)  # a file is not to be closed while a thread reads it
        process.stderr.close()


@pytest.fixture(scope="module")
def contents(small_checkpoint):
    """Ten image files with their likeliest labels."""
    predictor = Predictor(small_checkpoint, device="cpu")
    found = []
    for array in np.random.default_rng(3).integers(0, 256, (10, 40, 36, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        found.append((file.getvalue(), predictor(Image.fromarray(array)).labels[0]))
    return found


def load(port, contents, *, clients, requests):
    """Asks from several threads at once; returns the number of right, of wrong and of failed answers."""
    counts = {"right": 0, "wrong": 0, "failed": 0}
    lock = threading.Lock()

    def work(first):
        for number in range(first, requests, clients):
            content, (label, probability) = contents[number % len(contents)]
            try:
                status, body = ask(port, "POST", "/predict?top_k=1", content)
            except (OSError, http.client.HTTPException):
                kind = "failed"
            else:
                kind = "failed"
                if status == 200:
                    best = json.loads(body)["results"][0]["labels"][0]
                    is_right = best["label"] == label and abs(best["probability"] - probability) < 1e-4
                    kind = "right" if is_right else "wrong"
            with lock:
                counts[kind] += 1

    threads = [threading.Thread(target=work, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


@pytest.mark.slow
def test_many_clients_get_right_answers_and_it_finishes_what_it_accepted(small_checkpoint, contents):
    process, port = start(small_checkpoint, "--max-wait-ms", "50")
    try:
        assert load(port, contents, clients=16, requests=400) == {"right": 400, "wrong": 0, "failed": 0}
        _, metrics = ask(port, "GET", "/metrics")
        counts = dict(line.rsplit(" ", 1) for line in metrics.decode().splitlines() if not line.startswith("#"))
        assert float(counts["t2t_vit_images_total"]) == 400
        assert float(counts["t2t_vit_batch_size_count"]) < 380  # some were computed together
        results = []
        waiting = threading.Thread(target=lambda: results.append(ask(port, "POST", "/predict", contents[0][0])[0]))
        waiting.start()
        time.sleep(0.03)
    finally:
        code = stop(process)
    waiting.join()
    assert results == [200]
    assert code in (0, -signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_workers_are_replaced_and_no_answer_is_wrong(small_checkpoint, contents):
    process, port = start(small_checkpoint, "--workers", "4")
    try:

        def workers():
            found = []
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(int(pid))
            return found

        deadline = time.monotonic() + 60
        while len(workers()) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(5)  # all have loaded
        before = workers()
        killed = before[:2]
        killer = threading.Timer(0.5, lambda: [os.kill(pid, signal.SIGKILL) for pid in killed])
        killer.start()
        counts = load(port, contents, clients=8, requests=1200)
        killer.join()
        assert counts["wrong"] == 0
        assert counts["right"] >= 1200 - 16  # at most what the two had in hand is lost
        deadline = time.monotonic() + 60
        while len(workers()) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not set(killed) & set(workers())
        time.sleep(1)
        metrics = ask(port, "GET", "/metrics")[1].decode()
        assert "t2t_vit_waiting 0.0" in metrics  # though two died with images in hand
        answered = re.search(r'requests_total\{path="/predict",status="200"\} (\d+)', metrics)
        # Of all processes, the dead ones too, but for what these had sent and not counted yet: at most one a client.
        assert int(answered[1]) >= counts["right"] - 8
        assert load(port, contents, clients=4, requests=40)["wrong"] == 0
    finally:
        stop(process)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_replicas_in_a_ray_cluster_grow_with_the_load_and_one_that_dies_is_replaced(small_checkpoint, contents):
    pytest.importorskip("ray.serve")

    def replicas():
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if path.read_bytes().startswith(b"ray::ServeReplica"):
                    found.add(int(path.parent.name))
        return found

    process, port = start(small_checkpoint, "--ray", "2", "-b", "2", "--device", "cpu", T2T_VIT_API_KEY=KEY)
    results = []
    try:
        without_key = {"Content-Type": "image/png"}
        assert ask(port, "POST", "/predict", contents[0][0], without_key)[0] == 401  # replicas know the key
        deadline = time.monotonic() + 150
        while len(replicas()) < 2:
            counts = load(port, contents, clients=16, requests=200)
            assert counts == {"right": 200, "wrong": 0, "failed": 0}
            assert time.monotonic() < deadline
        time.sleep(5)  # it has loaded
        before = replicas()
        killer = threading.Timer(0.5, lambda: os.kill(min(before), signal.SIGKILL))
        killer.start()
        counts = load(port, contents, clients=8, requests=1200)
        killer.join()
        assert counts["wrong"] == 0
        assert counts["right"] >= 1200 - 100  # what it had in hand, and came before Ray noticed
        deadline = time.monotonic() + 60
        while len(replicas() - before) < 1 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert replicas() - before
        many = json.dumps({"images": [base64.b64encode(contents[0][0]).decode()] * 32})
        headers = {"Content-Type": "application/json", "X-API-Key": KEY}
        ask_many = partial(ask, port, "POST", "/predict", many, headers)
        waiting = [threading.Thread(target=lambda: results.append(ask_many()[0])) for _ in range(3)]
        for thread in waiting:
            thread.start()
        time.sleep(0.1)
    finally:
        code = stop(process)
    for thread in waiting:
        thread.join()
    assert (results, code) == ([200] * 3, 0)


def test_a_port_that_is_taken_is_told(small_checkpoint, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--checkpoint", str(small_checkpoint), "--port", str(port), "--device", "cpu"]) == 2
    assert (
        f"port {port} cannot be listened at: Address already in use. Choose another --port" in capsys.readouterr().err
    )


def test_ray_chooses_the_gpu_of_a_replica(small_checkpoint, capsys):
    assert main(["serve", "--checkpoint", str(small_checkpoint), "--ray", "2", "--device", "cuda:1"]) == 2
    assert "Ray gives each process one: give --device cuda." in capsys.readouterr().err


def test_paths_mean_the_same_in_every_process_of_a_cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert absolute("runs/a") == f"{tmp_path}/runs/a"
    assert absolute("/a") == "/a"
    assert absolute("~/a") == "/home/ann/a"
    assert absolute("~nobody-here/a") == f"{tmp_path}/~nobody-here/a"
    assert absolute("https://host/a.pt") == "https://host/a.pt"


def test_answers_go_at_once():
    """An answer that waits for others to share a packet with takes 40 ms longer."""
    listening = serve_module._listen(configure(ServeConfig, checkpoint="a.pt", port=0))
    with listening, socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_checkpoint_that_is_none_is_told(tmp_path, capsys):
    (tmp_path / "a.pt").write_text("no weights")
    assert main(["serve", "--checkpoint", str(tmp_path / "a.pt"), "--device", "cpu"]) == 2
    assert "is no checkpoint" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, which asks nobody by itself."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """A photograph to be made smaller, lossless, larger in one direction."""
    from sklearn.datasets import load_sample_image

    path = tmp_path_factory.mktemp("photograph") / "china.png"
    Image.fromarray(load_sample_image("china.jpg")[40:340, :]).save(path)
    return path


def shown(page):
    """The labels on the page with their percentages."""
    lines = [line for line in page.inner_text("#labels").splitlines() if line.strip()]
    return dict(zip(lines[::2], (float(line.removesuffix(" %")) for line in lines[1::2]), strict=True))


def open_page(browser, url, **settings):
    page = browser.new_page(**settings)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((url, "blob:")) else page.problems.append(request.url)
    )
    page.goto(url)
    page.wait_for_selector("body[data-ready=yes]", timeout=60_000)
    return page


@pytest.mark.slow
def test_the_page_in_a_browser(browser, small_checkpoint, photograph):
    wanted = {label: 100 * p for label, p in Predictor(small_checkpoint, device="cpu")(photograph).labels}
    process, port = start(small_checkpoint, T2T_VIT_API_KEY="secret")
    try:
        page = open_page(browser, f"http://127.0.0.1:{port}/")
        page.set_input_files("#file", photograph)
        page.wait_for_selector("#status.wrong")
        assert "the key is missing or wrong" in page.inner_text("#status")
        page.fill("#key", "secret")
        page.set_input_files("#file", photograph)
        page.wait_for_selector("#attention:not([hidden])")
        assert shown(page) == pytest.approx(wanted, abs=0.06)  # shown with one decimal
        assert page.inner_text("#status").startswith("china.png: ")
        plain = page.evaluate("document.getElementById('picture').toDataURL()")
        page.focus("#layer")  # by keyboard
        page.keyboard.press("ArrowRight")
        assert page.get_attribute("#layer", "aria-valuetext") == "layer 1 of 1"
        assert page.evaluate("document.getElementById('picture').toDataURL()") != plain
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
        page.wait_for_selector("#status.wrong")
        assert "cannot read it as an image" in page.inner_text("#status")
        assert page.problems == []
        page.close()
    finally:
        stop(process)


@pytest.mark.slow
def test_the_network_in_a_browser(browser, small_checkpoint, photograph, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    words = ["export", "--checkpoint", str(small_checkpoint), "--format", "web", "--output", str(tmp_path / "page")]
    code = main(words)
    if code == 2 and "npm could not fetch" in capsys.readouterr().err:
        pytest.skip("needs npm, and its registry")
    assert code == 0
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "page"))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        page = open_page(browser, f"http://127.0.0.1:{server.server_port}/")
        predictor = Predictor(small_checkpoint, device="cpu")
        for path in (photograph,):
            page.set_input_files("#file", path)
            page.wait_for_selector("#found:not([hidden])")
            wanted = {label: 100 * p for label, p in predictor(path).labels}
            assert shown(page) == pytest.approx(wanted, abs=0.5)
        assert page.is_hidden("#attention")
        assert "does not leave it" in page.inner_text("#privacy")
        assert page.problems == []
        page.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
