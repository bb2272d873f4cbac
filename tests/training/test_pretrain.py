"""Pre-training on formulas: the same loop, with a probe on the way."""

from types import SimpleNamespace

import numpy as np
import pytest

from t2t_vit.cli import main
from t2t_vit.data import formula_sets
from t2t_vit.errors import UserError
from t2t_vit.models.checkpoint_formats import read_checkpoint
from t2t_vit.options import configure
from t2t_vit.training import loop
from t2t_vit.training.config import PretrainConfig
from t2t_vit.training.plan import Plan
from t2t_vit.training.progress import Progress
from t2t_vit.training.train import run_training, train

SETTINGS = {"img_size": 32, "steps": 4, "batch_size": 8, "eval_every": 2, "device": "cpu", "workers": 0, "amp": False}


FEW = {"strokes": 16, "contours": 8, "fractals": 8, "motifs": 8, "waves": 8, "leaves": 8}


@pytest.fixture(autouse=True)
def _few_classes(monkeypatch, without_report):
    monkeypatch.setattr(formula_sets, "CLASSES", FEW)
    names = tuple(f"{family}/{number}" for family, count in FEW.items() for number in range(count))
    monkeypatch.setattr(formula_sets, "CLASS_NAMES", names)


def pretrain(output, **settings):
    return run_training(configure(PretrainConfig, output=str(output), **{**SETTINGS, **settings}))


def test_a_probe_is_measured_at_the_start_and_at_each_evaluation(tmp_path, capsys):
    result = pretrain(tmp_path / "run")
    said = capsys.readouterr().out
    probes = [row["probe_top1"] for row in result.metrics]
    assert len(probes) == 2
    assert all(20 < probe < 100 for probe in probes)  # chance has 10
    assert "probe: digits, 100 labels: the untrained network's features give" in said
    assert f"probe  {probes[-1]:.2f} %" in said
    assert "where guessing among 56 classes has 4.03: hardly anything is learnt" in said  # four steps teach nothing


@pytest.mark.parametrize(
    ("step", "val_loss", "probe", "told"),
    [
        (9, 4.6, 10.0, ""),  # too early to tell
        (10, 4.2, 90.0, "where guessing among 100 classes has 4.61: hardly anything is learnt"),
        (10, 4.1, 69.0, "the features give 69.00 %, those of the untrained network gave 70.00 %"),
        (10, 4.1, 70.0, ""),
        (10, 4.1, None, ""),  # no probe
    ],
)
def test_a_run_that_learns_little_says_so(step, val_loss, probe, told):
    said = []
    run = SimpleNamespace(
        progress=Progress(plan=Plan(100, 10, 10), step=step, probe_at_start=None if probe is None else 70.0),
        source=SimpleNamespace(class_names=range(100)),
        display=SimpleNamespace(say=said.append),
        probe=SimpleNamespace(name="digits, 100 labels"),
    )
    loop.warn_of_little_learnt(run, {"val_loss": val_loss, "probe_top1": probe})
    assert len(said) == (told != "")
    assert told in "".join(said)


def test_the_command_that_a_stopped_run_names_continues_it_and_a_report_is_made(tmp_path):
    pretrain(tmp_path / "run")
    assert main(["train", "--resume", "--output", str(tmp_path / "run")]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0


def test_what_was_pretrained_is_a_start_for_other_data(tmp_path):
    result = pretrain(tmp_path / "run", probe=None)
    assert "probe_top1" not in result.metrics[-1]
    best = result.output / "best.pt"
    before = read_checkpoint(str(best)).state_dict
    tuned = train(
        "digits", checkpoint=str(best), steps=1, lr=1e-9, warmup_lr=1e-9, min_lr=1e-9, weight_decay=0.0,
        model_ema=False, device="cpu", workers=0, amp=False, output=str(tmp_path / "tuned"),
    )  # fmt: skip
    after = read_checkpoint(str(tuned.output / "best.pt")).state_dict
    assert after["head.weight"].shape[0] == 10
    for name in ("tokens_to_token.project.weight", "blocks.0.attn.qkv.weight"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_goes_on_as_if_it_had_not_been_stopped(tmp_path, num_steps, monkeypatch):
    whole = pretrain(tmp_path / "whole")
    learn_until = loop.learn_until

    def stop_early(run, last_step):
        if run.progress.step >= num_steps:
            raise KeyboardInterrupt
        return learn_until(run, min(last_step, num_steps))

    monkeypatch.setattr(loop, "learn_until", stop_early)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "parts")
    monkeypatch.setattr(loop, "learn_until", learn_until)
    parts = pretrain(tmp_path / "parts", resume=True)
    ours, theirs = (read_checkpoint(str(result.output / "last.pt")).state_dict for result in (parts, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert [row["probe_top1"] for row in parts.metrics] == [row["probe_top1"] for row in whole.metrics]


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match="--probe must be other data than formulas"):
        pretrain(tmp_path / "run", probe="formulas")
    with pytest.raises(UserError, match="--in-chans must be 3, or 1 for grey, got 4"):
        pretrain(tmp_path / "channels", in_chans=4)
    with pytest.raises(UserError, match="--img-size must be one side, got 32 48"):
        pretrain(tmp_path / "shape", img_size=(32, 48))
    with pytest.raises(UserError, match=r"--labels has no effect on formulas.*--cache has no effect on formulas"):
        pretrain(tmp_path / "more", labels=20, cache=True)
    with pytest.raises(
        UserError, match="--probe-labels must be at most the 1,437 training images of digits, got 5,000"
    ):
        pretrain(tmp_path / "other", probe_labels=5000)
