"""A run that was stopped and continued ends with the very weights of one that never was."""

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from t2t_vit.data.loading import DrawnImages
from t2t_vit.errors import UserError
from t2t_vit.options import configure
from t2t_vit.training import checkpointer, loop, setup
from t2t_vit.training.checkpointer import read_training_state, write_checkpoint
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.learner import Learner
from t2t_vit.training.train import run_training

pytestmark = pytest.mark.usefixtures("without_report")

EVERYTHING = {
    "mixup": 0.8, "cutmix": 1.0, "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25, "drop": 0.1, "drop_path": 0.2,
    "aug_repeats": 2, "clip_grad": 1.0,
}  # fmt: skip
SETTINGS = {
    "everything": EVERYTHING,
    "no average, accumulation": {"model_ema": False, "grad_accum_steps": 3},
    "bfloat16": {"amp": True},
    "sgd with momentum": {"opt": "sgd", "momentum": 0.9, "lr": 0.01, "backbone_lr_scale": 0.1},
}


class Killed(BaseException):
    """What ends a run in these tests as suddenly as a dead machine: nothing but the files remains."""


def final_state(result):
    state = read_training_state(result.output / "last.pt")
    weights = {
        f"{part}.{key}": value
        for part in ("state_dict", "state_dict_ema")
        for key, value in state.get(part, {}).items()
    }
    moments = {
        f"{index}.{key}": value
        for index, moment in state["optimizer"]["state"].items()
        for key, value in moment.items()
        if torch.is_tensor(value)
    }
    return weights | moments


def assert_equal_runs(one, other):
    states = final_state(one), final_state(other)
    assert states[0].keys() == states[1].keys()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []
    kept = ("epoch", "lr", "train_loss", "val_loss", "val_top1", "ema_top1")
    rows = [[{key: row[key] for key in kept if key in row} for row in run.metrics] for run in (one, other)]
    assert [row["epoch"] for row in rows[1]] == list(range(len(rows[0])))
    for row, their in zip(*rows, strict=True):
        assert row == pytest.approx(their, rel=1e-12)


def kill_after_step(monkeypatch, step):
    steps = [0]
    original = Learner.learn

    def stop(self, batch, number):
        if steps[0] == step:
            raise Killed
        steps[0] += 1
        return original(self, batch, number)

    monkeypatch.setattr(Learner, "learn", stop)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("step", [2, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, 3, 5))])
def test_killed_after_a_step(name, step, tiny_config, tmp_path, monkeypatch):
    """3 steps an epoch, a checkpoint after every second: kills fall on and between checkpoints and epochs."""
    settings = {**SETTINGS[name], "checkpoint_every": 2, "workers": 0}
    whole = run_training(tiny_config(**settings, output=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        kill_after_step(patch, step)
        with pytest.raises(Killed):
            run_training(tiny_config(**settings))
    assert_equal_runs(whole, run_training(tiny_config(**settings, resume=True)))


@pytest.mark.slow
def test_killed_many_times_with_changing_workers_and_caches(tiny_config, tmp_path, monkeypatch):
    settings = {**EVERYTHING, "checkpoint_every": 1}
    whole = run_training(tiny_config(**settings, output=str(tmp_path / "whole")))
    for workers in (0, 1, 2):
        with monkeypatch.context() as patch:
            kill_after_step(patch, 1)
            with pytest.raises(Killed):
                run_training(tiny_config(**settings, resume=True, workers=workers, cache=workers == 1))
    assert_equal_runs(whole, run_training(tiny_config(**settings, resume=True, workers=1)))


@pytest.mark.slow
def test_killed_between_the_checkpoint_and_what_follows_from_it(tiny_config, tmp_path, monkeypatch):
    whole = run_training(tiny_config(output=str(tmp_path / "whole"), checkpoint_hist=2))
    with monkeypatch.context() as patch:

        def die_at_best(path, contents):
            if path.name == "best.pt":
                raise Killed
            write_checkpoint(path, contents)

        patch.setattr(checkpointer, "write_checkpoint", die_at_best)
        with pytest.raises(Killed):
            run_training(tiny_config(checkpoint_hist=2))
    resumed = run_training(tiny_config(checkpoint_hist=2, resume=True))
    assert_equal_runs(whole, resumed)
    for name in ("best.pt", "epoch-0001.pt", "epoch-0002.pt"):
        ours, theirs = (torch.load(run.output / name, weights_only=True)["state_dict"] for run in (resumed, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (resumed.output / "metrics.jsonl").read_text().count("\n") == 2


@pytest.mark.slow
def test_a_run_goes_on_without_the_weights_that_it_started_from(tiny_config, tmp_path, monkeypatch):
    start = tmp_path / "start.pt"
    torch.save(timm.create_model("t2t_vit_7", img_size=32, num_classes=2).state_dict(), start)
    settings = {"checkpoint": str(start)}
    whole = run_training(tiny_config(**settings, output=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        kill_after_step(patch, 4)
        with pytest.raises(Killed):
            run_training(tiny_config(**settings))
    start.unlink()
    assert_equal_runs(whole, run_training(tiny_config(**settings, resume=True)))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["step", "validation"])
def test_a_signal_saves_and_leaves(number, moment, tiny_config, tmp_path, monkeypatch, capsys):
    whole = run_training(tiny_config(output=str(tmp_path / "whole")))
    before = signal.getsignal(number)
    target, name = (Learner, "learn") if moment == "step" else (loop, "measure_accuracy")
    original, calls = getattr(target, name), [0]

    def send(*args, **kwargs):
        result = original(*args, **kwargs)
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), number)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(target, name, send)
        stopped = run_training(tiny_config())
    assert stopped.interrupted == 128 + number
    assert "Stopped and saved. To go on: t2t-vit train --resume --output " in capsys.readouterr().out
    assert signal.getsignal(number) is before
    assert read_training_state(stopped.output / "last.pt")["progress"]["step"] == (2 if moment == "step" else 3)
    assert_equal_runs(whole, run_training(tiny_config(resume=True)))


@pytest.mark.slow
def test_an_evaluation_that_is_interrupted_ends_no_patience(tiny_config, monkeypatch, capsys):
    original, calls = loop.measure_accuracy, [0]

    def send(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 3:  # the first of the second evaluation, before anything is measured
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure_accuracy", send)
        assert run_training(tiny_config(patience=1, epochs=3)).interrupted == 143
    assert "stopped early" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_during_validation_does_not_wait_for_its_end(tiny_config, tmp_path, monkeypatch):
    """8 images to validate on, 2 at a time: the signal comes with the first, when the epoch's steps are saved."""
    settings = {"batch_size": 2, "epochs": 1}
    whole = run_training(tiny_config(**settings, output=str(tmp_path / "whole")))
    last = Path(tiny_config().output) / "last.pt"
    original, seen = DrawnImages._sample, []

    def send(self, draw, generated):
        if last.exists() and self.images.names[draw.image_index].startswith("val/"):
            if not seen:
                assert read_training_state(last)["progress"]["step"] == 12
                os.kill(os.getpid(), signal.SIGTERM)
            seen.append(draw)
        return original(self, draw, generated)

    with monkeypatch.context() as patch:
        patch.setattr(DrawnImages, "_sample", send)
        assert run_training(tiny_config(**settings)).interrupted == 143
    assert len(seen) == 2
    assert_equal_runs(whole, run_training(tiny_config(**settings, resume=True)))


def test_a_second_ctrl_c_leaves_at_once(tiny_config, monkeypatch):
    def send(self, batch, step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Learner, "learn", send)
    with pytest.raises(KeyboardInterrupt):
        run_training(tiny_config())
    assert signal.getsignal(signal.SIGINT) is before


def test_the_last_checkpoints_are_kept(tiny_config):
    result = run_training(tiny_config(epochs=4, checkpoint_hist=2))
    assert sorted(path.name for path in result.output.glob("*.pt")) == [
        "best.pt", "epoch-0003.pt", "epoch-0004.pt", "last.pt",
    ]  # fmt: skip


def test_the_last_checkpoints_are_kept_though_epochs_between_are_not_evaluated(tiny_config):
    result = run_training(tiny_config(epochs=6, checkpoint_hist=2, eval_share=0.1, eval_every=6))
    assert sorted(path.name for path in result.output.glob("epoch-*.pt")) == ["epoch-0004.pt", "epoch-0006.pt"]


def test_a_failed_write_is_told_and_the_checkpoint_before_it_stands(tiny_config, monkeypatch, capsys):
    save, calls = torch.save, [0]

    def fill_the_disk(contents, file):
        calls[0] += 1
        if calls[0] == 4:  # after the steps of an epoch, and after its evaluation
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        save(contents, file)

    monkeypatch.setattr(torch, "save", fill_the_disk)
    result = run_training(tiny_config(epochs=3))
    output = capsys.readouterr().out
    assert "last.pt could not be written: No space left on device. What was there before stands." in output
    assert len(result.metrics) == 3
    assert not list(result.output.glob("*.tmp"))
    calls[0] = 3
    with pytest.raises(UserError, match="No space left"):
        write_checkpoint(result.output / "last.pt", {})
    assert read_training_state(result.output / "last.pt")["progress"]["step"] == 9


def test_the_best_epoch_is_the_best_of_those_that_were_saved(tiny_config, monkeypatch):
    """The second of three epochs is the best, and its weights are lost; its metrics are not."""
    top1 = iter([50.0, 90.0, 60.0])
    measure = loop.measure_accuracy

    def written(contents):
        return contents["chosen"]["epoch"] + 1 if "chosen" in contents else len(contents["progress"]["metrics"])

    def write(path, contents):
        if written(contents) == 2:
            raise UserError("no room")
        write_checkpoint(path, contents)

    monkeypatch.setattr(loop, "measure_accuracy", lambda *args, **kwargs: replace(measure(*args), top1=next(top1)))
    monkeypatch.setattr(checkpointer, "write_checkpoint", write)
    result = run_training(tiny_config(epochs=3, model_ema=False))
    assert result.best_top1 == 60.0
    best = torch.load(result.output / "best.pt", weights_only=True)
    assert (best["chosen"]["epoch"], best["chosen"]["weights"], best["chosen"]["num_images"]) == (2, "last weights", 8)
    assert "optimizer" not in best
    assert (result.output / "metrics.jsonl").read_text().count("\n") == 3


def test_metrics_are_written_though_the_checkpoint_is_not(tiny_config, monkeypatch):
    monkeypatch.setattr(checkpointer, "write_checkpoint", lambda *args: (_ for _ in ()).throw(UserError("no room")))
    config = tiny_config(epochs=1)
    with pytest.raises(UserError, match="no room"):
        run_training(config)
    assert Path(config.output, "metrics.jsonl").read_text().count("\n") == 1


def test_a_disk_that_takes_no_more_is_named_as_the_cause(tmp_path):
    """torch's own message speaks of a place in its code."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError) as refusal:
            write_checkpoint(tmp_path / "last.pt", {"weights": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(refusal.value) == f"{tmp_path / 'last.pt'} could not be written: File too large."
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_table_that_cannot_be_written_is_a_mistake_of_the_users(name, tiny_config):
    config = tiny_config(epochs=1)
    (Path(config.output) / f".{name}.tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name} could not be written: Is a directory"):
        run_training(config)


def test_a_run_whose_last_checkpoint_cannot_be_written_fails(tiny_config, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda contents, file: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        run_training(tiny_config(epochs=1))


def test_a_damaged_checkpoint_is_told(tiny_config):
    result = run_training(tiny_config(epochs=1))
    last = result.output / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last.pt is damaged and cannot be continued from"):
        run_training(tiny_config(epochs=1, resume=True))
    torch.save({"state_dict": {}}, last)
    with pytest.raises(UserError, match=r"last.pt is no checkpoint that a run left"):
        run_training(tiny_config(epochs=1, resume=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: [3", "config.yaml is no YAML file"),
        ("old_setting: 3\nepochs: many", "Unknown setting old_setting in .*config.yaml.*expected a whole number"),
        ("- epochs", "must hold lines such as"),
    ],
)
def test_damaged_settings_of_a_run_are_told(content, message, tiny_config):
    config = tiny_config()
    Path(config.output).mkdir()
    Path(config.output, "config.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        TrainConfig.defaults_for({"data": config.data, "output": config.output, "resume": True})


def test_a_run_goes_on_with_fewer_processes_and_says_what_that_changes(tiny_config, capsys):
    last = run_training(tiny_config(epochs=1)).output / "last.pt"
    write_checkpoint(last, read_training_state(last) | {"processes": 2})
    assert run_training(tiny_config(epochs=1, resume=True)).metrics
    assert "the run had 2 processes, and goes on with 1. It draws the same images" in capsys.readouterr().out


def test_a_run_in_grey_keeps_the_mean_that_it_measured(tiny_config, monkeypatch):
    result = run_training(tiny_config(epochs=1, in_chans=1))
    monkeypatch.setattr(setup, "measure_channels", lambda images: pytest.fail("measured again"))
    assert run_training(tiny_config(epochs=1, in_chans=1, resume=True)).metrics == result.metrics


def test_a_run_is_resumed_from_another_folder(tiny_config, tmp_path, monkeypatch):
    data = Path(tiny_config().data)
    monkeypatch.chdir(data.parent)
    run_training(tiny_config(data=data.name, epochs=1, output=str(tmp_path / "run")))
    monkeypatch.chdir(tmp_path)
    assert configure(TrainConfig, output="run", resume=True).data == str(data.resolve())


def test_another_kind_of_budget_for_a_run_is_told_how_to_train_on(tiny_config):
    config = tiny_config(epochs=1)
    run_training(config)
    wanted = configure(TrainConfig, output=config.output, resume=True, steps=9000)
    with pytest.raises(UserError, match=r"epochs was 1, now none; steps was none, now 9000.*train on in a new run"):
        run_training(wanted)
