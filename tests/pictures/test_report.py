"""The report is written at the end of a run, with the predictions of the run's best weights."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from t2t_vit.data.images import ImageSet
from t2t_vit.data.loading import Batch
from t2t_vit.data.sources import open_source
from t2t_vit.data.transforms import Normalize, eval_transform
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.pictures import report
from t2t_vit.pictures.report import Answer, Best, RunSummary, predict, write_report
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import Machine, find_machine
from t2t_vit.training.train import run_training

BEST = Best(1, 0, "last weights", 50.0, 4, 50.0)


def cells_of(page):
    """The confusion matrix of a page: number of images for each (label, predicted)."""
    found = re.findall(r"<title>(\w+) taken for (\w+): (\d+)</title>", page)
    return {(label, predicted): int(count) for label, predicted, count in found}


def test_a_run_ends_with_its_report(tiny_config, capsys):
    trained = run_training(tiny_config())
    page = (trained.output / "report.html").read_text(encoding="utf-8")
    wrong = round(8 * (1 - trained.best_top1 / 100))
    assert f"<b>{trained.best_top1:.2f} %</b> <span>{wrong} of 8 images wrong</span>" in page
    best = torch.load(trained.output / "best.pt", weights_only=True)["chosen"]
    assert f"<b>{best['step']}</b> <span>of 6: the {best['weights']}</span>" in page
    assert sum(cells_of(page).values()) == 8
    assert page.count("<img") == wrong
    assert f"report: {trained.output / 'report.html'}" in capsys.readouterr().out


@pytest.mark.slow
def test_what_goes_wrong_is_told_and_the_run_is_safe(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr(report, "Predictor", lambda path, machine: (_ for _ in ()).throw(RuntimeError("out of memory")))
    result = run_training(tiny_config())
    assert len(result.metrics) == 2
    assert not (result.output / "report.html").exists()
    output = capsys.readouterr().out
    assert f"warning: {result.output / 'report.html'} is not written: RuntimeError: out of memory" in output
    assert "best top-1" in output.splitlines()[-1]


@pytest.mark.slow
def test_predictions_are_those_of_the_network(tiny_config, picture_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(picture_folder, folder)
    (folder / "val/lying/1.png").write_bytes(b"no image")
    output = run_training(tiny_config(data=str(folder), epochs=1)).output
    val, machine = open_source(str(folder)).val, find_machine("cpu", amp=False)
    predictor = Predictor(output / "best.pt", machine=machine)
    loader = evaluation_loader(val, predictor.data_config, batch_size=3, machine=machine, workers=0)
    found = predict(predictor, loader, Display())

    transform = eval_transform(predictor.data_config)
    readable = [index for index in range(8) if index != 1]
    with torch.inference_mode():
        images = torch.stack([transform(val.load(index)) for index in readable])
        logits = predictor.network(Normalize(predictor.data_config, machine.device)(images))
    expected = logits.double().exp() / logits.double().exp().sum(dim=1, keepdim=True)
    assert [prediction.image_index for prediction in found] == readable
    assert [prediction.label for prediction in found] == [0, 0, 0, 1, 1, 1, 1]
    assert [prediction.predicted for prediction in found] == expected.argmax(dim=1).tolist()
    torch.testing.assert_close(
        torch.tensor([prediction.probability for prediction in found], dtype=torch.float64),
        expected.amax(dim=1), atol=1e-5, rtol=0,
    )  # fmt: skip
    assert all(prediction.in_top5 for prediction in found)  # of two classes


def test_the_class_may_be_among_the_five_likeliest():
    logits = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]).repeat(3, 1)
    data_config = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    predictor = Predictor(lambda images: logits, device="cpu", data_config=data_config, class_names="abcdef")
    batch = Batch(torch.zeros(3, 3, 8, 8), torch.tensor([0, 4, 5]), torch.arange(3), [])
    found = predict(predictor, [batch], Display())
    assert [(prediction.is_right, prediction.in_top5) for prediction in found] == [
        (True, True), (False, True), (False, False),
    ]  # fmt: skip


METRICS = {"epoch": 0, "step": 1, "train_loss": 1.0, "val_loss": 0.5, "val_top1": 50.0, "images_per_second": 5.0} | {
    "elapsed_s": 60.0, "data_wait_percent": 20.0, "device_wait_percent": 60.0,
}  # fmt: skip


class FakeProcess(Machine):
    """One of two processes, beside which the other one found this."""

    def gather(self, value):
        values = [value, FakeProcess.other_found]
        return values if self.rank == 0 else values[::-1]


@pytest.fixture
def run_of_two(monkeypatch, tmp_path, capsys):
    """Writes a report as one of two processes; returns the page, or None, and what is printed."""

    def write(rank, other_found):
        mine = [Answer(index, 0, 0, 0.9, True) for index in (0, 2)]
        monkeypatch.setattr(report, "Predictor", lambda path, machine: None)
        monkeypatch.setattr(report, "predict", lambda *args: mine)
        monkeypatch.setattr(FakeProcess, "other_found", other_found, raising=False)
        images = ImageSet([f"{index}.png" for index in range(4)], [0, 1, 0, 1], lambda index: Image.new("RGB", (8, 8)))
        summary = RunSummary("title", "about", [METRICS], BEST, images, ["a", "b"])
        machine = FakeProcess(find_machine("cpu").device, None, rank, world_size=2)
        display = Display(silent=rank > 0)
        path = tmp_path / "report.html"
        write_report(path, Path("best.pt"), [], summary, machine=machine, display=display)
        return path.read_text() if path.exists() else None, capsys.readouterr().out

    return write


def test_several_processes_make_one_report(run_of_two):
    others = [Answer(index, 1, 0, 0.9, True) for index in (1, 3)]
    written, _ = run_of_two(0, others)
    assert cells_of(written) == {("a", "a"): 2, ("b", "a"): 2}


def test_the_other_processes_write_and_say_nothing(run_of_two):
    assert run_of_two(1, []) == (None, "")


def test_a_failure_in_another_process_is_told(run_of_two):
    written, said = run_of_two(0, "OSError: gone")
    assert written is None
    assert "is not written: OSError: gone" in said
