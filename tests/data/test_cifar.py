"""CIFAR-10 and CIFAR-100 from files of the published format, found or downloaded."""

import hashlib
import io
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from t2t_vit.data.cifar import CIFARS
from t2t_vit.data.sources import open_evaluation, open_source

CLASS_NAMES = ["airplane", "frog", "truck"]


def published_files(name):
    """The published files by name, with a few random images in each."""
    rng = np.random.default_rng(0)

    def batch(labels_key, num_images):
        pixels = rng.integers(0, 256, (num_images, 3072), dtype=np.uint8)
        return pickle.dumps({"data": pixels, labels_key: [i % 3 for i in range(num_images)]})

    if name == "cifar10":
        batches = {f"data_batch_{i}": batch("labels", 4) for i in range(1, 6)} | {"test_batch": batch("labels", 6)}
        return batches | {"batches.meta": pickle.dumps({"label_names": CLASS_NAMES})}
    batches = {part: batch("fine_labels", n) for part, n in (("train", 20), ("test", 6))}
    return batches | {"meta": pickle.dumps({"fine_label_names": CLASS_NAMES})}


@pytest.fixture(params=["cifar10", "cifar100"])
def published(request, tmp_path, monkeypatch):
    """The data set's name and a folder with its archive, whose MD5 sums torchvision takes for the true ones."""
    name, cifar = request.param, CIFARS[request.param]
    files = published_files(name)
    folder = tmp_path / "published"
    folder.mkdir()
    with tarfile.open(folder / cifar.filename, "w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{cifar.base_folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    def md5(content):
        return hashlib.md5(content).hexdigest()

    monkeypatch.setattr(cifar, "tgz_md5", md5((folder / cifar.filename).read_bytes()))
    for parts in ("train_list", "test_list"):
        monkeypatch.setattr(cifar, parts, [[file, md5(files[file])] for file, _ in getattr(cifar, parts)])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5(files[cifar.meta["filename"]])})
    monkeypatch.setattr(cifar, "url", "http://127.0.0.1:9/nothing-listens-here")
    monkeypatch.chdir(tmp_path)
    return name, folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(published, monkeypatch):
    """Serves the archive where torchvision looks for it; the URLs that were asked for."""
    name, folder = published
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    monkeypatch.setattr(CIFARS[name], "url", f"http://127.0.0.1:{server.server_port}/{CIFARS[name].filename}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_archive_in_a_folder(published):
    name, folder = published
    source = open_source(name, data_dir=str(folder))
    assert source.class_names == tuple(CLASS_NAMES)
    assert (len(source.train), len(source.val), source.split["kind"]) == (20, 6, "given")
    assert source.val.names[:2] == ["test/airplane/00000", "test/frog/00001"]
    assert source.val.labels == [0, 1, 2, 0, 1, 2]
    content = published_files(name)["test_batch" if name == "cifar10" else "test"]
    expected = pickle.loads(content)["data"][4].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(source.val.load(4)), expected)
    assert open_source(name, data_dir=str(folder)).split == source.split  # from the files that are unpacked by now


def test_it_is_downloaded_once(published, server, monkeypatch, tmp_path):
    name, _ = published
    evaluation = open_evaluation(name)
    assert (len(evaluation.images), evaluation.part) == (6, f"test images of {name}")
    assert (tmp_path / "data" / CIFARS[name].base_folder).is_dir()
    monkeypatch.setattr(CIFARS[name], "url", "http://127.0.0.1:9/nothing-listens-here")
    assert len(open_source(name).train) == 20


def test_without_a_network_the_files_are_named(published, refusal):
    name, _ = published
    message = refusal(name)
    archive = CIFARS[name].filename
    assert message.startswith(f"{name} is not in the folder data, and downloading http://127.0.0.1:9/nothing")
    assert message.endswith(f"Put {archive} there, or name its folder with --data-dir.")


def test_another_archive_is_refused(published, server, refusal):
    name, folder = published
    (folder / CIFARS[name].filename).write_bytes(b"a page that says sorry")
    assert "failed: File not found or corrupted" in refusal(name)
