"""The server under load: images per second beside `predict`'s, times of answers, memory, and wrong answers.

    pip install '.[serve]' psutil
    python benchmarks/serve_load.py --checkpoint runs/FOLDER --images FOLDER/val --clients 32 --requests 10000

The clients are threads of a process of its own, each with a connection that stays open, on the same machine: they take
part of its cores. `predict` runs before and after on as many images, without its start. Answers are held against those of
`Predictor` to 0.001 of a probability.
"""

import argparse
import http.client
import json
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from t2t_vit.inference.inputs import find_images
from t2t_vit.inference.predictor import Predictor
from t2t_vit.runtime.console import new_table, print_table

PORT = 8077
Expected = Sequence[tuple[bytes, tuple[str, float]]]


def predict_speed(checkpoint: str, paths: Sequence[Any], count: int) -> tuple[float, list[tuple[str, float]]]:
    """Images per second of `Predictor` over files, and the likeliest label of each path."""
    predictor = Predictor(checkpoint)
    found = [prediction.labels[0] for prediction in predictor(paths, 1)]
    many = [paths[row % len(paths)] for row in range(count)]
    start = time.perf_counter()
    for _ in predictor(many, 1):
        pass
    return count / (time.perf_counter() - start), found


def load(expected: Expected, clients: int, requests: int, pipe: Any) -> None:
    """Asks, and sends (seconds of each answer, wrong answers, refusals, seconds of all)."""
    times: list[float] = []
    wrong, refused = [0], [0]
    lock = threading.Lock()

    def work(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        for number in range(first, requests, clients):
            content, (label, probability) = expected[number % len(expected)]
            start = time.perf_counter()
            connection.request("POST", "/predict?top_k=1", content, {"Content-Type": "application/octet-stream"})
            response = connection.getresponse()
            body, took = response.read(), time.perf_counter() - start
            with lock:
                if response.status != 200:
                    refused[0] += 1
                    continue
                times.append(took)
                best = json.loads(body)["results"][0]["labels"][0]
                wrong[0] += best["label"] != label or abs(best["probability"] - probability) > 1e-3

    start = time.perf_counter()
    threads = [threading.Thread(target=work, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((times, wrong[0], refused[0], time.perf_counter() - start))


def ask(expected: Expected, clients: int, requests: int) -> tuple[list[float], int, int, float]:
    """`load` in a process of its own, so that its threads do not share this one's interpreter."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=load, args=(expected, clients, requests, theirs))
    process.start()
    found = ours.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--compared", type=int, default=2000, help="images of predict")
    parser.add_argument("--workers", type=int, default=1, help="of the server")
    words = parser.parse_args()
    paths = find_images(words.images)[:200]
    before, labels = predict_speed(words.checkpoint, paths, words.compared)
    expected = [(Path(path).read_bytes(), label) for path, label in zip(paths, labels, strict=True)]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "t2t_vit",
            "serve",
            "--checkpoint",
            words.checkpoint,
            "--port",
            str(PORT),
            "--workers",
            str(words.workers),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        process = psutil.Process(server.pid)

        def memory_mb() -> float:
            return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 1e6

        ask(expected, words.clients, max(words.requests // 10, words.clients))
        first_mb = memory_mb()
        times, wrong, refused, seconds = ask(expected, words.clients, words.requests)
        last_mb = memory_mb()
        alone, *_ = ask(expected, 1, 200)
    finally:
        server.terminate()
        server.wait()
    after, _ = predict_speed(words.checkpoint, paths, words.compared)
    speed, of_predict = len(times) / seconds, statistics.fmean((before, after))
    if len(times) < 2:
        raise SystemExit(f"{refused:,} requests were refused, and {len(times)} answered")
    marks = statistics.quantiles(times, n=100)
    table = new_table("", "", num_words=1)
    for name, value in {
        "predict, before and after": f"{before:.0f} and {after:.0f} images/s",
        f"server, {words.clients} clients": f"{speed:.0f} images/s, {speed / of_predict:.2f} of predict",
        "p50, p99": f"{1e3 * marks[49]:.0f} ms, {1e3 * marks[98]:.0f} ms",
        "one client: p50": f"{1e3 * statistics.median(alone):.1f} ms",
        "answers: right, wrong, refused": f"{len(times) - wrong:,}, {wrong}, {refused}",
        "memory before and after": f"{first_mb:.0f} MB, {last_mb:.0f} MB",
    }.items():
        table.add_row(name, value)
    print_table(table)


if __name__ == "__main__":
    main()
