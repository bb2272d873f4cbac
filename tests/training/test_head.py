"""The head that is fitted anew after training."""

import numpy as np
import pytest
import torch

from t2t_vit import Predictor
from t2t_vit.training import head as head_module
from t2t_vit.training.checkpointer import read_training_state
from t2t_vit.training.head import discriminant, refit
from t2t_vit.training.loop import fit
from t2t_vit.training.setup import setup
from t2t_vit.training.train import run_training


def clouds(num_classes, *, num_images=200, seed=0):
    """Features with a shared covariance that is far from round, and labels."""
    rng = np.random.default_rng(seed)
    centres, shape = np.random.default_rng(9).normal(size=(num_classes, 8)), np.diag(np.linspace(0.1, 3, 8))
    labels = np.arange(num_images) % num_classes
    return (centres[labels] + rng.normal(size=(num_images, 8)) @ shape).astype(np.float32), labels


def accuracy(weight, bias, features, labels):
    logits = torch.from_numpy(features) @ weight.T + bias
    return (logits.argmax(1).numpy() == labels).mean()


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_discriminant_finds_what_the_nearest_mean_does_not(num_classes):
    features, labels = clouds(num_classes)
    weight, bias = discriminant(features, labels)
    assert (weight.shape, bias.shape, weight.dtype) == ((num_classes, 8), (num_classes,), torch.float32)
    others, their_labels = clouds(num_classes, seed=1)
    means = np.stack([features[labels == label].mean(0) for label in range(num_classes)])
    nearest = ((others[:, None] - means) ** 2).sum(-1).argmin(1)
    assert accuracy(weight, bias, others, their_labels) > (nearest == their_labels).mean() + 0.05


@pytest.mark.parametrize("num_classes", [2, 3])
def test_its_logits_give_the_analysis_probabilities(num_classes):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, labels = clouds(num_classes)
    weight, bias = discriminant(features, labels)
    wanted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(features, labels).predict_proba(features)
    found = (torch.from_numpy(features) @ weight.T + bias).softmax(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_balanced_classes_are_equally_likely():
    features, labels = clouds(2)
    kept = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:10]])
    for balanced, share in ((True, 0.5), (False, 10 / 110)):
        weight, bias = discriminant(features[kept], labels[kept], balanced=balanced)
        middle = torch.from_numpy(np.stack([features[kept][labels[kept] == k].mean(0) for k in (0, 1)])).mean(0)
        assert (weight @ middle + bias).softmax(0)[1].item() == pytest.approx(share, abs=1e-3)


def state_of(run):
    return torch.load(run / "best.pt", weights_only=True)


def test_the_kept_weights_are_those_of_the_run_with_another_head(tiny_config, tmp_path, capsys):
    plain = run_training(tiny_config(output=str(tmp_path / "plain"))).output
    anew = run_training(tiny_config(output=str(tmp_path / "anew"), refit_head=True)).output
    assert "head fitted anew to the features of the training images: " in capsys.readouterr().out
    theirs, ours = state_of(plain), state_of(anew)
    assert {name for name, value in ours["state_dict"].items() if not value.equal(theirs["state_dict"][name])} == {
        "head.weight",
        "head.bias",
    }
    assert (theirs["chosen"]["refitted"], ours["chosen"]["refitted"]) == (False, True)
    assert read_training_state(anew / "last.pt")["progress"]["best"] == list(ours["chosen"].values())
    assert (anew / "metrics.jsonl").read_text().count("\n") == (plain / "metrics.jsonl").read_text().count("\n")
    assert "with the head fitted anew" in (anew / "report.html").read_text()


def test_what_is_told_of_the_kept_weights_is_what_they_have(tiny_config, without_report):
    config = tiny_config(refit_head=True)
    result = run_training(config)
    run = setup(tiny_config(refit_head=True, resume=True))
    predictor = Predictor(result.output, device="cpu")
    images = [run.source.val.load(row) for row in range(len(run.source.val))]
    found = [labels[0][0] for _, labels, *_ in predictor(images, top_k=1)]
    wanted = [run.source.class_names[label] for label in run.source.val.labels]
    assert result.best_top1 == pytest.approx(100 * np.mean(np.array(found) == wanted))


def test_a_run_that_ends_before_or_within_it_is_completed(tiny_config, without_report, monkeypatch, capsys):
    wanted = state_of(run_training(tiny_config(refit_head=True)).output)["state_dict"]
    capsys.readouterr()
    again = run_training(tiny_config(refit_head=True, resume=True)).output  # nothing is left to do
    assert "fitted anew to" not in capsys.readouterr().out
    assert all(value.equal(wanted[name]) for name, value in state_of(again)["state_dict"].items())

    config = tiny_config(refit_head=True, output=str(again.with_name("killed")))
    run = setup(config)
    fit(run)  # killed before the head
    monkeypatch.setattr(type(run), "save", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        head_module.refit_best(run)  # killed after best.pt
    monkeypatch.undo()
    killed = run_training(tiny_config(refit_head=True, output=config.output, resume=True)).output
    assert all(value.equal(wanted[name]) for name, value in state_of(killed)["state_dict"].items())
    assert state_of(killed)["chosen"]["refitted"]


def test_a_head_that_is_clearly_worse_is_not_kept(tiny_config, without_report, monkeypatch, capsys):
    plain = setup(tiny_config(refit_head=True))
    fit(plain)
    best = plain.progress.best
    plain.progress.best = best._replace(top1=100.0, num_images=1000)
    monkeypatch.setattr(head_module, "discriminant", lambda *args, **kwargs: (torch.zeros(2, 32), torch.zeros(2)))
    before = state_of(plain.directory.path)
    head_module.refit_best(plain)
    assert "the head is not fitted anew, as that is worse: 100.00 % before" in capsys.readouterr().out
    after = state_of(plain.directory.path)
    assert all(value.equal(before["state_dict"][name]) for name, value in after["state_dict"].items())
    assert not plain.progress.best.refitted


def test_what_cannot_be_fitted_is_told(tiny_config, without_report, monkeypatch):
    run = setup(tiny_config(refit_head=True))
    fit(run)
    labels = run.source.train.labels
    missing = [row for row, label in enumerate(labels) if label != 1]
    object.__setattr__(
        run, "source", run.source.__class__(**{**vars(run.source), "train": run.source.train.subset(missing)})
    )
    model = run.load_best()
    with torch.no_grad():
        model.norm.bias.fill_(float("nan"))
    assert refit(run, model) == "its features are not finite"
    name = run.source.class_names[1]
    assert refit(run, run.load_best()) == f"of {name} no training image could be read"


def test_several_images_are_enough(tiny_config, without_report, monkeypatch):
    monkeypatch.setattr(head_module, "MAX_IMAGES", 12)
    run = setup(tiny_config(refit_head=True))
    model = run.model
    before = model.head.weight.detach().clone()
    assert refit(run, model) is None
    assert not model.head.weight.equal(before)
