"""A look at the first batch, which changes nothing of the run."""

import numpy as np
import pytest
import torch
from PIL import Image

from t2t_vit.training import preview
from t2t_vit.training.checkpointer import read_training_state
from t2t_vit.training.learner import Learner
from t2t_vit.training.preview import as_picture, caption_of
from t2t_vit.training.train import run_training

NAMES = ["cat", "dog", "owl"]


@pytest.mark.parametrize("settings", [{}, {"mixup": 0.8, "cutmix": 1.0, "reprob": 0.5}, {"in_chans": 1}])
def test_the_sheet_shows_what_the_network_gets(tiny_config, monkeypatch, settings, without_report):
    shown, learnt = [], []
    draw, parts = preview.draw_sheet, Learner._parts

    def spy_on_sheet(images, captions):
        shown.append((images, captions))
        return draw(images, captions)

    def spy_on_parts(self, batch):
        for part in parts(self, batch):
            learnt.append((self, part[0].clone()))
            yield part

    monkeypatch.setattr(preview, "draw_sheet", spy_on_sheet)
    monkeypatch.setattr(Learner, "_parts", spy_on_parts)
    result = run_training(tiny_config(**settings))
    (images, captions) = shown[0]
    with Image.open(result.output / "augmented.png") as sheet:
        assert sheet.format == "PNG"
    learner, first = learnt[-6]  # the first of six steps
    expected = np.stack([as_picture(one * learner.normalize.std + learner.normalize.mean) for one in first])
    assert (images == expected).all()
    assert len(captions) == 8
    assert any(" + " in caption for caption in captions) == bool(settings.get("mixup"))


def test_a_run_ends_with_the_same_weights_without_it(tiny_config, monkeypatch, tmp_path, without_report):
    everything = {"mixup": 0.8, "cutmix": 1.0, "reprob": 0.5, "drop": 0.1, "epochs": 1}
    with_sheet = run_training(tiny_config(**everything)).output
    monkeypatch.setattr("t2t_vit.training.setup.show_augmented", lambda *_: None)
    without = run_training(tiny_config(**everything, output=str(tmp_path / "other"))).output
    assert not (without / "augmented.png").exists()
    one, other = (read_training_state(run / "last.pt")["state_dict"] for run in (with_sheet, without))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("target", "caption"),
    [
        (torch.tensor(1), "dog"),
        (torch.tensor([0.7, 0.0333, 0.2667]), "70% cat + 27% owl"),
        (torch.tensor([0.0333, 0.9333, 0.0333]), "dog"),
    ],
)
def test_captions_name_classes_and_mixtures(target, caption):
    assert caption_of(target, NAMES, smoothing=0.1) == caption


def test_arrays_are_pictures_by_their_range():
    assert as_picture(torch.rand(5, 8, 9) * 1e-3).shape == (8, 9, 3)
    assert as_picture(torch.full((1, 8, 9), 0.5)).tolist() == np.full((8, 9, 3), 128).tolist()
