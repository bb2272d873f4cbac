"""The head that is fitted anew after training."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from t2t_vit import Predictor
from t2t_vit.errors import UserError
from t2t_vit.options import configure
from t2t_vit.training import head as head_module
from t2t_vit.training.checkpointer import read_training_state
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.head import discriminant, fair_share, is_clearly_worse, refit, refit_best, spread
from t2t_vit.training.loop import fit
from t2t_vit.training.setup import setup
from t2t_vit.training.train import run_training


def test_folders_have_it_where_nobody_says(picture_folder):
    assert configure(TrainConfig, data=str(picture_folder)).refit_head
    assert not configure(TrainConfig, data=str(picture_folder), refit_head=False).refit_head


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
    from sklearn.covariance import OAS
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, labels = clouds(num_classes)
    weight, bias = discriminant(features, labels)
    analysis = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=OAS()).fit(features, labels)
    found = (torch.from_numpy(features) @ weight.T + bias).softmax(1).numpy()
    np.testing.assert_allclose(found, analysis.predict_proba(features), atol=1e-4)


@pytest.mark.parametrize("counts", [(2, 2, 2, 2, 2), (2, 1, 1, 1, 1), (3, 3)])
def test_two_images_of_a_class_are_enough(counts):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(counts), 200))
    labels, others = np.repeat(np.arange(len(counts)), counts), np.arange(100) % len(counts)
    features, their_features = (centres[of] + rng.normal(size=(len(of), 200)) for of in (labels, others))
    weight, bias = discriminant(features, labels)
    assert accuracy(weight, bias, their_features.astype(np.float32), others) > 0.9
    assert weight.abs().max() < 100


def test_images_that_are_all_alike_are_told():
    with pytest.raises(UserError, match="the same features"):
        discriminant(np.eye(3)[[0, 0, 1, 2]], np.array([0, 0, 1, 2]))


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
    assert "the averaged weights, with a head fitted anew: " in capsys.readouterr().out
    theirs, ours = state_of(plain), state_of(anew)
    assert {name for name, value in ours["state_dict"].items() if not value.equal(theirs["state_dict"][name])} == {
        "head.weight",
        "head.bias",
    }
    assert (theirs["chosen"]["refitted"], ours["chosen"]["refitted"]) == (False, True)
    assert read_training_state(anew / "last.pt")["progress"]["best"] == list(ours["chosen"].values())
    assert (anew / "metrics.jsonl").read_text().count("\n") == (plain / "metrics.jsonl").read_text().count("\n")
    assert "with a head fitted anew" in (anew / "report.html").read_text()


def test_what_is_told_of_the_kept_weights_is_what_they_have(tiny_config, without_report):
    config = tiny_config(refit_head=True)
    result = run_training(config)
    run = setup(tiny_config(refit_head=True, resume=True))
    predictor = Predictor(result.output, device="cpu")
    images = [run.source.val.load(row) for row in range(len(run.source.val))]
    found = [labels[0][0] for _, labels, *_ in predictor(images, top_k=1)]
    wanted = [run.source.class_names[label] for label in run.source.val.labels]
    assert result.best_top1 == pytest.approx(100 * np.mean(np.array(found) == wanted))


def same(one, other):
    return all(value.equal(other[name]) for name, value in one.items())


def killed_here(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_run_that_ends_before_or_within_it_is_completed(tiny_config, without_report, monkeypatch, capsys):
    wanted = state_of(run_training(tiny_config(refit_head=True)).output)["state_dict"]
    capsys.readouterr()
    again = run_training(tiny_config(refit_head=True, resume=True)).output  # nothing is left to do
    assert "head fitted anew: " not in capsys.readouterr().out
    assert same(state_of(again)["state_dict"], wanted)

    for killed_after_best in (False, True):
        config = tiny_config(refit_head=True, output=str(again.with_name(f"killed-{killed_after_best}")))
        run = setup(config)
        fit(run)
        if killed_after_best:
            with monkeypatch.context() as patch:
                patch.setattr(type(run), "save", killed_here)
                with pytest.raises(KeyboardInterrupt):
                    refit_best(run)
        killed = run_training(tiny_config(refit_head=True, output=config.output, resume=True)).output
        assert same(state_of(killed)["state_dict"], wanted)
        assert state_of(killed)["chosen"]["refitted"]


def test_a_run_that_ends_within_it_does_not_go_back_twice(started, tmp_path, without_report, monkeypatch):
    config, _ = started
    run = setup(config(start_share=0.25))
    fit(run)
    run.progress.best = run.progress.best._replace(step=3)  # so that best.pt alone has the weights
    run.save()
    with monkeypatch.context() as patch:
        patch.setattr(type(run), "save", killed_here)
        with pytest.raises(KeyboardInterrupt):
            refit_best(run)
    made = state_of(run.directory.path)
    assert made["chosen"]["refitted"]
    again = setup(config(start_share=0.25, resume=True))
    fit(again)
    refit_best(again)
    assert again.progress.best.start_share == 0.25
    assert same(state_of(run.directory.path)["state_dict"], made["state_dict"])


def test_a_finished_run_gets_it_when_it_is_asked_for(tiny_config, without_report):
    wanted = state_of(run_training(tiny_config(refit_head=True)).output)["state_dict"]
    output = run_training(tiny_config(output=str(tiny_config().output) + "-2")).output
    assert not same(state_of(output)["state_dict"], wanted)
    run_training(tiny_config(output=str(output), refit_head=True, resume=True))
    assert same(state_of(output)["state_dict"], wanted)


def test_a_run_that_patience_ended_keeps_its_best_weights_and_gets_it(tiny_config, without_report):
    result = run_training(tiny_config(epochs=9, lr=1e-9, min_lr=0.0, patience=2, refit_head=True))
    chosen = state_of(result.output)["chosen"]
    assert (chosen["step"], chosen["refitted"]) == (3, True)
    assert result.metrics[-1]["step"] == 9


@pytest.mark.parametrize(
    ("lost", "won", "is_worse"),
    [(0, 0, False), (9, 0, False), (10, 0, True), (60, 40, False), (80, 40, True), (0, 9, False)],
)
def test_a_head_is_worse_where_it_is_no_chance(lost, won, is_worse):
    before = np.array([True] * lost + [False] * won + [True] * 20)
    after = np.array([False] * lost + [True] * won + [True] * 20)
    assert is_clearly_worse(before, after, np.ones(len(before))) == is_worse


@pytest.mark.parametrize(("weights", "is_worse"), [([1] * 136, False), ([1 / 120] * 120 + [1 / 16] * 16, True)])
def test_where_classes_count_alike_a_head_is_worse_that_loses_a_small_one(weights, is_worse):
    before = np.array([False] * 20 + [True] * 100 + [True] * 16)
    after = np.array([True] * 120 + [False] * 16)
    assert is_clearly_worse(before, after, np.array(weights)) == is_worse


@pytest.mark.parametrize(
    ("best_by", "weights"), [("top1", [1.0] * 7), ("balanced", [1 / 4] * 4 + [1 / 3] * 3)], ids=["top1", "balanced"]
)
def test_a_worse_head_is_not_kept(best_by, weights, tiny_config, tmp_path, without_report, monkeypatch, capsys):
    folder = shutil.copytree(tiny_config().data, tmp_path / "uneven")
    sorted(Path(folder).glob("val/*/*"))[-1].unlink()
    run = setup(tiny_config(data=str(folder), refit_head=True, best_by=best_by))
    fit(run)
    kept, labels = state_of(run.directory.path)["state_dict"], np.array(run.source.val.labels)
    for answer in (0, 1):
        bias = torch.nn.functional.one_hot(torch.tensor(answer), 2).float()
        monkeypatch.setattr(head_module, "discriminant", lambda *args, bias=bias, **kwargs: (torch.zeros(2, 32), bias))
        compared = []
        monkeypatch.setattr(head_module, "is_clearly_worse", lambda *args, to=compared: to.append(args) or True)
        refit_best(run)
        ((before, after, given),) = compared
        assert given.tolist() == weights
        assert 100 * before.mean() == run.progress.best.top1
        assert after.tolist() == (labels == answer).tolist()
        assert "the trained head is kept" in capsys.readouterr().out
        assert same(state_of(run.directory.path)["state_dict"], kept)
        assert not run.progress.best.refitted


def test_what_goes_wrong_is_told_and_the_run_stays_whole(tiny_config, without_report, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(head_module, "discriminant", fail)
    result = run_training(tiny_config(refit_head=True))
    assert "warning: the head is not fitted anew: no convergence" in capsys.readouterr().out
    assert not state_of(result.output)["chosen"]["refitted"]


def test_it_is_as_sure_as_the_head_before(tiny_config, without_report):
    run = setup(tiny_config(refit_head=True))
    torch.nn.init.normal_(run.model.head.weight, std=0.3)
    logits = [head_module._read(run, run.model, run.source.train).logits]
    refit(run, run.model)
    logits += [head_module._read(run, run.model, run.source.train).logits]
    assert spread(logits[1]) == pytest.approx(spread(logits[0]), rel=1e-3)
    assert abs(logits[1] - logits[0]).max() > 0.1


def test_what_cannot_be_fitted_is_told(tiny_config, without_report, monkeypatch):
    run = setup(tiny_config(refit_head=True))
    model = run.model
    head = model.head
    model.head = torch.nn.Linear(32, 2, bias=False)
    with pytest.raises(UserError, match="has no single linear layer with a bias"):
        refit(run, model)
    model.head = head
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward_head", doubled(type(model).forward_head))
        with pytest.raises(UserError, match="does more than its last linear layer"):
            refit(run, model)
    with torch.no_grad():
        model.norm.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        refit(run, model)


def doubled(forward_head):
    """A head that does more than its linear layer."""
    return lambda self, x, pre_logits=False: forward_head(self, x, pre_logits) * (1 if pre_logits else 2)


def test_an_unreadable_class_is_told(tiny_config, without_report, monkeypatch):
    run = setup(tiny_config(refit_head=True))
    read = head_module.predict_all

    def without_one(*args, **kwargs):
        found = read(*args, **kwargs)
        kept = found.labels != 1
        return head_module.Predictions(*(column[kept] for column in vars(found).values()))

    monkeypatch.setattr(head_module, "predict_all", without_one)
    with pytest.raises(UserError, match=f"of {run.source.class_names[1]} no training image could be read"):
        refit(run, run.model)


def test_of_many_images_every_class_has_its_share(monkeypatch):
    monkeypatch.setattr(head_module, "FITTED_IMAGES", 100)
    labels = [0] * 900 + [1] * 90 + [2]
    rows = fair_share(labels)
    assert (len(rows), rows) == (100, sorted(set(rows)))
    assert np.bincount(np.array(labels)[rows]).tolist() == pytest.approx([90, 9, 1], abs=1)
    assert fair_share(labels[:50]) == list(range(50))


@pytest.fixture
def started(tiny_config, tmp_path):
    """Settings of a run from weights that another run has left, and these weights."""
    first = run_training(tiny_config(output=str(tmp_path / "first"))).output
    settings = {"checkpoint": str(first), "lr": 1e-3, "refit_head": True, "start_share": 0.0}
    return partial(tiny_config, **settings), state_of(first)["state_dict"]


def test_weights_go_a_part_of_the_way_back_and_the_head_is_fitted_to_that(started, tmp_path, capsys, without_report):
    config, start = started
    end = state_of(run_training(config(output=str(tmp_path / "end"))).output)["state_dict"]
    output = run_training(config(start_share=0.25)).output
    assert "weights, 25 % of the way back to the start, with a head fitted anew: " in capsys.readouterr().out
    for name, found in state_of(output)["state_dict"].items():
        if not name.startswith("head."):
            torch.testing.assert_close(found, 0.75 * end[name] + 0.25 * start[name])
    run = setup(config(resume=True, start_share=0.25))
    model = run.load_best()
    before = model.head.weight.clone()
    refit(run, model)
    torch.testing.assert_close(before, model.head.weight)
    with pytest.raises(UserError, match=r"cannot go on under other settings: start_share was 0.25, now 0.5\. Leave"):
        setup(config(resume=True, start_share=0.5))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "the run starts from nothing"),
        ({"model": "resnet10t", "img_size": 64, "pretrained": True}, "resnet10t has batch norms"),
    ],
)
def test_where_there_is_no_way_back_a_share_of_it_is_refused(changes, why, tiny_config, monkeypatch):
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match=f"--start-share has no effect: {why}. Leave it out."):
        setup(tiny_config(**changes, refit_head=True, start_share=0.5))


def test_where_the_way_back_is_worse_only_the_head_changes(started, tmp_path, monkeypatch, capsys, without_report):
    config, _ = started
    end = state_of(run_training(config(output=str(tmp_path / "end"))).output)["state_dict"]
    answers = iter([True, False])
    monkeypatch.setattr(head_module, "is_clearly_worse", lambda *args: next(answers))
    output = run_training(config(start_share=0.25)).output
    assert same(state_of(output)["state_dict"], end)
    assert "way back" not in capsys.readouterr().out


def test_a_start_that_is_gone_is_told_and_the_head_fitted(started, tmp_path, capsys, without_report):
    config, _ = started
    run = setup(config(start_share=0.25))
    fit(run)
    shutil.rmtree(tmp_path / "first")
    refit_best(run)
    assert "warning: the weights do not go back to those of the start: " in capsys.readouterr().out
    assert run.progress.best.refitted


@pytest.mark.parametrize("model", ["resnet10t", "t2t_vit_7_no_t2t"])
def test_networks_of_any_kind_have_it(model, tiny_config, without_report):
    chosen = state_of(run_training(tiny_config(model=model, img_size=64, refit_head=True)).output)["chosen"]
    assert chosen["refitted"]
