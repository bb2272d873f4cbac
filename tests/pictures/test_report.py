"""The report is written at the end of a run, with the predictions of the run's best weights."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from t2t_vit.cli import main
from t2t_vit.inference.evaluate import Accuracy
from t2t_vit.inference.predictions import Predictions
from t2t_vit.inference.predictor import Predictor
from t2t_vit.pictures.report import answers_of, write_report
from t2t_vit.runtime.console import Display
from t2t_vit.training import loop
from t2t_vit.training.train import run_training


def cells_of(page):
    """The confusion matrix of a page: number of images for each (label, predicted)."""
    found = re.findall(r"<title>(\w+) taken for (\w+): (\d+)</title>", page)
    return {(label, predicted): int(count) for label, predicted, count in found}


def test_a_run_ends_with_its_report(tiny_config, capsys):
    trained = run_training(tiny_config())
    page = (trained.output / "report.html").read_text(encoding="utf-8")
    wrong = round(8 * (1 - trained.best_top1 / 100))
    assert f"<b>{trained.best_top1:.2f} %</b> <span>{wrong} of 8 images wrong; " in page
    best = torch.load(trained.output / "best.pt", weights_only=True)["chosen"]
    assert f"<b>{best['step']}</b> <span>of 6: the {best['weights']}</span>" in page
    assert sum(cells_of(page).values()) == 8
    assert len(re.findall('<img[^>]* alt="[^"]*: taken for ', page)) == wrong
    assert "Augmented training images" in page
    with Image.open(trained.output / "augmented.png") as sheet:
        assert sheet.width > 8 * 96
    assert f"report: {trained.output / 'report.html'}" in capsys.readouterr().out


@pytest.mark.slow
def test_what_goes_wrong_is_told_and_the_run_is_safe(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr(Predictor, "stream", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
    monkeypatch.setattr(loop, "measure_accuracy", lambda *_, **__: Accuracy(50.0, 100.0, 1.0, 8, (50.0, 50.0)))
    result = run_training(tiny_config())
    assert len(result.metrics) == 2
    assert not (result.output / "report.html").exists()
    output = capsys.readouterr().out
    assert f"warning: {result.output / 'report.html'} is not written: RuntimeError: out of memory" in output
    assert "best top-1" in output.splitlines()[-1]


def test_a_page_that_cannot_be_drawn_is_told(tmp_path, capsys):
    write_report(tmp_path / "report.html", lambda: None, PREDICTIONS, None, display=Display())
    assert f"warning: {tmp_path}/report.html is not written: AttributeError: " in capsys.readouterr().out


PREDICTIONS = Predictions(
    np.array([2, 5, 7]), np.array([0, 4, 5]), np.tile(np.arange(6.0, 0, -1), (3, 1)), np.zeros((3, 2))
)


def test_answers_are_made_of_logits():
    found = answers_of(PREDICTIONS)
    assert [answer.image_index for answer in found] == [2, 5, 7]
    assert [(answer.is_right, answer.in_top5) for answer in found] == [(True, True), (False, True), (False, False)]
    powers = np.exp(np.arange(6.0, 0, -1))
    for answer in found:
        assert answer.probability == pytest.approx(powers[0] / powers.sum(), rel=1e-5)
        assert answer.label_probability == pytest.approx(powers[answer.label] / powers.sum(), rel=1e-5)
    assert answers_of(PREDICTIONS, temperature=100.0)[0].probability == pytest.approx(1 / 6, abs=0.01)


def test_the_best_weights_are_calibrated(tiny_config, picture_folder):
    trained = run_training(tiny_config())
    kept = torch.load(trained.output / "best.pt", weights_only=True)["calibration"]
    assert kept["num_images"] == 8
    predictor = Predictor(trained.output / "best.pt", device="cpu")
    assert predictor.temperature == kept["temperature"] != 1
    path = picture_folder / "val/lying/0.png"
    calibrated = dict(predictor(path).labels)
    predictor.temperature = 1.0
    raw = dict(predictor(path).labels)
    odds = [np.log(one["lying"] / one["upright"]) for one in (raw, calibrated)]
    assert odds[0] == pytest.approx(odds[1] * kept["temperature"], rel=1e-3)
    before = (trained.output / "best.pt").read_bytes()
    assert main(["report", str(trained.output)]) == 0
    assert (trained.output / "best.pt").read_bytes() == before
