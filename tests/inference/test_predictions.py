"""What a network says of all images of a set."""

import shutil

import numpy as np
import pytest
import torch

from t2t_vit.data.sources import open_source
from t2t_vit.data.transforms import Normalize, eval_transform
from t2t_vit.inference.predictions import predict_all
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import Machine, find_machine


@pytest.fixture
def predictor(write_small_checkpoint, tmp_path):
    return Predictor(
        write_small_checkpoint(tmp_path / "small.pt", num_classes=2), machine=find_machine("cpu", amp=False)
    )


@pytest.fixture
def val(picture_folder, tmp_path):
    """Eight images, of which the second cannot be read."""
    folder = tmp_path / "data"
    shutil.copytree(picture_folder, folder)
    (folder / "val/lying/1.png").write_bytes(b"no image")
    return open_source(str(folder)).val


def loader_of(val, predictor, machine=None):
    machine = machine or predictor.machine
    return evaluation_loader(val, predictor.data_config, batch_size=3, machine=machine, workers=0)


def test_predictions_are_those_of_the_network(predictor, val):
    found = predict_all(predictor, loader_of(val, predictor), Display(silent=True))
    transform = eval_transform(predictor.data_config)
    readable = [index for index in range(8) if index != 1]
    with torch.inference_mode():
        images = torch.stack([transform(val.load(index)) for index in readable])
        images = Normalize(predictor.data_config, predictor.machine.device)(images)
        logits = predictor.network(images)
        embeddings = predictor.network.forward_head(predictor.network.forward_features(images), pre_logits=True)
    assert found.indices.tolist() == readable
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(found.logits, logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.embeddings, embeddings.numpy(), atol=1e-5)


class FakeProcess(Machine):
    """One of two processes, beside which the other one found this."""

    other_found: object = None

    def gather(self, value):
        values = [value, self.other_found]
        return values if self.rank == 0 else values[::-1]


def test_several_processes_get_all_in_order(predictor, val, monkeypatch):
    whole = predict_all(predictor, loader_of(val, predictor), Display(silent=True))
    device = predictor.machine.device
    parts = {}
    for rank in (0, 1):
        predictor.machine = FakeProcess(device, None, rank, world_size=2)
        monkeypatch.setattr(FakeProcess, "gather", lambda self, value: parts.setdefault(self.rank, value) and [value])
        predict_all(predictor, loader_of(val, predictor), Display(silent=True))
    monkeypatch.setattr(FakeProcess, "gather", lambda self, value: [parts[0], parts[1]])
    found = predict_all(predictor, loader_of(val, predictor), Display(silent=True))
    assert found.indices.tolist() == whole.indices.tolist()
    np.testing.assert_allclose(found.logits, whole.logits, atol=1e-5)


def test_a_failure_in_another_process_is_one_here_too(predictor, val):
    predictor.machine = FakeProcess(predictor.machine.device, None, 0, world_size=2)
    predictor.machine.__dict__["other_found"] = "OSError: gone"
    with pytest.raises(RuntimeError, match=r"^OSError: gone$"):
        predict_all(predictor, loader_of(val, predictor), Display(silent=True))


def test_no_image_is_no_failure(predictor, val, tmp_path):
    for file in (tmp_path / "data/val").rglob("*.png"):
        file.write_bytes(b"")
    found = predict_all(predictor, loader_of(val, predictor), Display(silent=True))
    assert (len(found.indices), found.logits.shape) == (0, (0, 2))
