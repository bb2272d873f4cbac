import csv
import json
import random
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.task import ClassificationTask

from t2t_vit.cli import main
from t2t_vit.data.loading import DrawnImages
from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError
from t2t_vit.inference.evaluate import Accuracy, measure_accuracy
from t2t_vit.runtime import machine, stopwatch
from t2t_vit.training import hindsight, learner, loop
from t2t_vit.training.checkpointer import Checkpointer, read_training_state
from t2t_vit.training.interruption import Interruption
from t2t_vit.training.learner import Learner
from t2t_vit.training.setup import setup
from t2t_vit.training.train import run_training


def weights_of(path):
    return read_training_state(path)["state_dict"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_a_run_leaves_what_it_promises(tiny_config):
    result = run_training(tiny_config())
    run = result.output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert set(rows[0]) == {
        "epoch", "step", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "val_images", "ema_top1",
        "val_balanced", "val_recalls", "ema_balanced", "ema_recalls", "steps_s",
        "images_per_second", "data_wait_percent", "device_wait_percent", "memory_gb", "elapsed_s",
    }  # fmt: skip
    assert rows == result.metrics
    with (run / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["val_top1"]) for row in table] == [row["val_top1"] for row in rows]
    assert "val_recalls" not in table[0]
    assert rows[0]["val_balanced"] == pytest.approx(sum(rows[0]["val_recalls"]) / 2)
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 2
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__
    checkpoint = torch.load(run / "last.pt", weights_only=True)
    assert checkpoint["model"] == "t2t_vit_7"
    assert checkpoint["class_names"] == ["lying", "upright"]
    assert checkpoint["data_config"]["input_size"] == [3, 32, 32]
    assert result.best_top1 == max(row["ema_top1"] for row in rows)
    assert not list(run.glob("*.tmp"))


def test_the_time_of_an_epoch_is_told_apart(tiny_config, monkeypatch):
    """3 steps: images take 1 s each and 8 a step, the network 2 s, its device 5, agreeing 1, and 2 checkpoints 7."""
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(learner, "Stopwatch", lambda host_apart: stopwatch.Stopwatch(host_apart=True))

    def lasting(seconds, target, name):
        original = getattr(target, name)

        def call(*args, **kwargs):
            now[0] += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(target, name, call)

    lasting(1, DrawnImages, "_sample")
    lasting(2, ClassificationTask, "forward")
    lasting(5, torch.Tensor, "tolist")
    lasting(1, Interruption, "in_any_process")
    lasting(7, Checkpointer, "save")
    (row,) = run_training(tiny_config(epochs=1, checkpoint_every=1)).metrics
    seconds = 24 + 6 + 15 + 3 + 14
    expected = {"images_per_second": 24, "data_wait_percent": 2400, "host_percent": 600, "device_wait_percent": 1800}
    assert {key: row[key] * seconds for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("policy", "fewest", "most"), [("3a", 10, 30), (None, 0, 0)])
def test_three_augment_makes_a_third_of_the_images_grey(policy, fewest, most, tiny_config):
    """The others are solarised or blurred."""
    transform = setup(tiny_config(aa=policy)).train_loader.dataset.transform
    orange = Image.new("RGB", (32, 32), (200, 100, 30))
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    images = [transform(orange).int() for _ in range(60)]
    assert fewest <= sum((image.amax(0) - image.amin(0) < 3).all().item() for image in images) <= most


@pytest.mark.slow
def test_a_compiled_network_learns_and_is_saved_as_any_other(tiny_config, tmp_path, monkeypatch):
    """With the backend that runs the traced graph as it is: what is tested is the loop around it."""
    compiled, compile_ = [], torch.compile

    def compile_eagerly(module, backend, **options):
        compiled.append(module)
        return compile_(module, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    settings = {"model": "t2t_vit_7_no_t2t", "epochs": 1, "drop_path": 0.0, "opt": "momentum", "lr": 0.01}
    plain = weights_of(run_training(tiny_config(**settings, output=str(tmp_path / "plain"))).output / "last.pt")
    assert not compiled
    weights = weights_of(run_training(tiny_config(**settings, compile=True)).output / "last.pt")
    assert compiled
    assert weights.keys() == plain.keys()
    for key, value in weights.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-4, atol=1e-6)


def test_training_learns(tiny_config):
    result = run_training(
        tiny_config(epochs=6, opt="adamw", lr=1e-2, scale=(0.8, 1.0), color_jitter=None, model_ema=False, smoothing=0.0)
    )
    assert result.metrics[-1]["train_loss"] < 0.5 * result.metrics[0]["train_loss"]
    assert result.best_top1 == 100.0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_config, tmp_path):
    settings = {"mixup": 0.8, "cutmix": 1.0, "reprob": 0.25, "aa": "rand-m9", "drop_path": 0.2, "epochs": 1}
    changed = {"a": {}, "b": {}, "worker": {"workers": 1}, "cache": {"cache": True}, "c": {"seed": 7}}
    runs = {
        name: weights_of(
            run_training(tiny_config(**settings, output=str(tmp_path / name), **changes)).output / "last.pt"
        )
        for name, changes in changed.items()
    }
    assert_same_weights(runs["a"], runs["b"])
    assert_same_weights(runs["a"], runs["worker"])
    assert_same_weights(runs["a"], runs["cache"])
    assert not torch.equal(runs["a"]["cls_token"], runs["c"]["cls_token"])


def test_a_finished_run_is_never_overwritten(tiny_config):
    run_training(tiny_config(epochs=1))
    with pytest.raises(UserError, match=r"holds a run: continue it with --resume, or choose another --output"):
        run_training(tiny_config(epochs=1))


def test_resuming_where_nothing_is_starts_fresh_and_says_so(tiny_config, capsys):
    result = run_training(tiny_config(epochs=1, resume=True))
    assert len(result.metrics) == 1
    assert "is not there yet: the run starts fresh" in capsys.readouterr().out


def test_resuming_under_settings_that_change_the_result_is_refused(tiny_config):
    run_training(tiny_config(epochs=1))
    with pytest.raises(UserError, match=r"lr was 0.003, now 0.1; seed was 42, now 3"):
        run_training(tiny_config(epochs=1, resume=True, lr=0.1, seed=3))


@pytest.mark.slow
def test_resuming_in_another_precision_is_refused_however_it_came_about(tiny_config, monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr(machine, "_has_fast_bfloat16", lambda device, fast=fast: fast)
        if fast:
            run_training(tiny_config(epochs=1, amp=None))
    with pytest.raises(UserError, match="precision was bfloat16, now float32"):
        run_training(tiny_config(epochs=1, amp=None, resume=True))
    assert run_training(tiny_config(epochs=1, amp=True, resume=True, log_to=("tensorboard",))).metrics


def test_a_model_may_be_spelt_in_another_way_when_the_run_goes_on(tiny_config):
    run_training(tiny_config(epochs=1))
    assert len(run_training(tiny_config(epochs=1, resume=True, model="T2T-ViT-7")).metrics) == 1
    with pytest.raises(UserError, match=r"model was t2t_vit_7, now t2t_vit_10"):
        run_training(tiny_config(epochs=1, resume=True, model="t2t_vit_10"))


def test_the_weights_of_the_start_may_be_named_from_anywhere(tiny_config, tmp_path, monkeypatch, without_report):
    run_training(tiny_config(epochs=1, output=str(tmp_path / "first")))
    monkeypatch.chdir(tmp_path)
    run_training(tiny_config(epochs=1, checkpoint="first/best.pt"))
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["config"]["checkpoint"] == str(tmp_path / "first" / "best.pt")
    run_training(tiny_config(epochs=1, checkpoint="first/best.pt", resume=True))
    monkeypatch.chdir("/")
    run_training(tiny_config(epochs=1, resume=True))
    state["config"]["checkpoint"] = "first/best.pt"  # as older runs have it
    torch.save(state, tmp_path / "run" / "last.pt")
    monkeypatch.chdir(tmp_path)
    run_training(tiny_config(epochs=1, checkpoint="first/best.pt", resume=True))


def test_resuming_takes_the_recorded_settings_for_those_left_open(tiny_config, picture_folder):
    config = tiny_config(epochs=1, lr=3e-4)
    run_training(config)
    given = {"data": str(picture_folder), "output": config.output, "resume": True}
    assert type(config).defaults_for(given) | given == {**asdict(config), "resume": True}


def test_unreadable_training_images_are_named_and_training_goes_on(tiny_config, tmp_path, picture_folder, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(picture_folder, broken)
    (broken / "train/lying/0.png").write_bytes(b"no image")
    (broken / "train/lying/1.png").write_bytes((broken / "train/lying/1.png").read_bytes()[:200])
    (broken / "val/lying/0.png").write_bytes(b"")
    result = run_training(tiny_config(data=str(broken), epochs=2))
    output = capsys.readouterr().out
    assert len(result.metrics) == 2
    warnings = [line for line in output.splitlines() if "training goes on without" in line]
    for name in ("train/lying/0.png", "train/lying/1.png"):
        assert sum(f"{name} is not a readable image" in line for line in warnings) == 1
    assert "training images that could not be read and were left out: 2" in output
    assert "validation goes on without: val/lying/0.png" in output


@pytest.mark.parametrize("part", ["train", "val"])
def test_data_of_which_most_cannot_be_read_is_refused(part, tiny_config, tmp_path, picture_folder):
    broken = tmp_path / "broken"
    shutil.copytree(picture_folder, broken)
    for path in (broken / part).glob("*/*[0-9].png"):
        if path.parent.name == "lying" or path.name == "1.png":
            path.write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"5 of 8 sampled {part}\w* images of .* cannot be read: {part}/lying"):
        run_training(tiny_config(data=str(broken)))


@pytest.mark.parametrize("changes", [{"aa": "banana"}, {"log_to": ("wandb",)}])
def test_what_is_not_there_is_told_before_anything_is_written(changes, tiny_config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_config(**changes)
    with pytest.raises(UserError, match=r"banana|wandb: not installed"):
        run_training(config)
    assert not list(Path(config.output).glob("*"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t2t_vit_13"}, "Unknown model 't2t_vit_13'. Did you mean"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"val_fraction": 0.3}, "--val-fraction has no effect on data that tells what to validate on"),
        ({"device": "cuda:99"}, "Device 'cuda:99' cannot be used"),
        ({"device": "tpu9"}, "Device 'tpu9' cannot be used"),
        ({"data": "digit"}, "digits"),
        ({"output": "/dev/null/run"}, "The output folder /dev/null/run cannot be written"),
        ({"img_size": 2}, "smallest size is 3 x 3"),
        ({"mixup": 0.8, "batch_size": 3}, "--batch-size 3, of 24 images, is shared among 1: give a multiple of 2"),
        ({"data": "digits", "cache": True}, "in memory, where these are already: leave it out"),
    ],
)
def test_mistakes_are_told(tiny_config, changes, message):
    with pytest.raises(UserError, match=message):
        run_training(tiny_config(**changes))


def test_the_ema_warms_up(tiny_config):
    """With a decay of 0.9998 from the first step, 6 steps would leave the average at the initial weights."""
    result = run_training(tiny_config(model_ema_decay=0.9998, lr=1e-2))
    state = read_training_state(result.output / "last.pt")
    initial = setup(tiny_config(output=str(result.output) + "2")).model.state_dict()
    key = "blocks.0.mlp.fc1.weight"
    moved = (state["state_dict"][key] - initial[key]).norm()
    assert (state["state_dict_ema"][key] - initial[key]).norm() > 0.3 * moved


def poison(monkeypatch, bad_steps):
    """Makes the loss of these steps of a run infinite."""
    learn = Learner.learn

    def learn_poisoned(self, batch, step):
        normalize = self.normalize
        if step + 1 in bad_steps:
            self.normalize = lambda images: normalize(images) * float("inf")
        try:
            return learn(self, batch, step)
        finally:
            self.normalize = normalize

    monkeypatch.setattr(Learner, "learn", learn_poisoned)


def test_a_step_without_a_finite_loss_is_skipped_and_recorded(tiny_config, monkeypatch, capsys):
    poison(monkeypatch, {2, 5})
    result = run_training(tiny_config())
    state = read_training_state(result.output / "last.pt")
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
    assert (state["progress"]["bad_steps"], state["progress"]["bad_in_a_row"]) == (2, 0)
    lines = (result.output / "bad_steps.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"batch": 1' in lines[0]
    assert lines[0].count("train/") == 8
    output = capsys.readouterr().out
    assert "epoch 1, batch 2: the loss or its gradient is not finite; step skipped" in output
    assert "2 steps were skipped" in output


def test_a_loss_that_stays_infinite_stops_the_run_with_a_good_checkpoint(tiny_config, monkeypatch):
    poison(monkeypatch, set(range(4, 100)))
    with pytest.raises(UserError, match=r"10 steps in a row had no finite loss; .*last.pt is the last good checkpoint"):
        run_training(tiny_config(epochs=9))
    output = Path(tiny_config().run_directory)
    state = read_training_state(output / "last.pt")
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_images_of_test_are_evaluated_once_at_the_end(tiny_config, picture_folder, tmp_path, capsys):
    folder = tmp_path / "parts"
    shutil.copytree(picture_folder, folder)
    shutil.copytree(folder / "val", folder / "test")
    (folder / "test/lying/0.png").unlink()
    result = run_training(tiny_config(data=str(folder)))
    assert result.test.num_images == 7
    printed = capsys.readouterr().out
    assert printed.count("top-1 on test ") == 1
    assert f"top-1 on test {result.test.top1:.2f} %, on 7 images by which nothing was chosen" in printed
    assert "top-1 on test" in (result.output / "report.html").read_text()


def test_with_few_labels_nothing_is_chosen_by_what_is_reported(tiny_config, picture_folder, monkeypatch, capsys):
    seen = {"training": set(), "validating": set(), "testing": set()}
    learn, measure = Learner.learn, measure_accuracy

    def note_learnt(self, batch, step):
        seen["training"] |= {run.source.train.names[row] for row in batch.indices.tolist()}
        return learn(self, batch, step)

    def note_measured(predictor, loader, display, *, label, **more):
        images, rows = loader.dataset.images, [draw.image_index for draws in loader.batch_sampler for draw in draws]
        seen["testing" if label == "testing" else "validating"] |= {images.names[row] for row in rows}
        return measure(predictor, loader, display, label=label, **more)

    config = tiny_config(labels=10, epochs=None, steps=4)
    run = setup(config)
    monkeypatch.setattr(Learner, "learn", note_learnt)
    monkeypatch.setattr(loop, "measure_accuracy", note_measured)
    monkeypatch.setattr(hindsight, "measure_accuracy", note_measured)
    result = run_training(config)
    parts = {part: {*images.names} for part, images in run.source.parts.items()}
    assert [len(part) for part in parts.values()] == [8, 2, 8]
    assert seen == {"training": parts["train"], "validating": parts["val"], "testing": parts["test"]}
    assert parts["test"] == {*open_source(str(picture_folder)).val.names}
    assert result.test.num_images == 8
    assert torch.load(result.output / "best.pt", weights_only=True)["chosen"]["num_images"] == 2
    printed = capsys.readouterr().out
    assert "10 labels: 8 images to learn from, 2 to choose by; 8 others are reported on at the end" in printed

    assert main(["report", str(result.output), "--device", "cpu"]) == 0
    assert "top-1 on test" in (result.output / "report.html").read_text()
    assert main(["eval", str(picture_folder), "--checkpoint", str(result.output), "--device", "cpu"]) == 0
    assert f"Top-1 accuracy of the model is: {result.test.top1:.1f}%" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"the data has other images: 8 \+ 2 then, 10 \+ 2 now; labels was 10, now 12\."
    ):
        run_training(tiny_config(labels=12, epochs=None, steps=4, resume=True))


@pytest.mark.parametrize(
    ("num_images", "at_the_end", "chosen"),
    [(8, 60, 6), (8, 20, 6), (8, 5, 3), (100, 46, 6), (100, 44, 3), (2000, 60, 3), (2000, 59.9, 3)],
)
def test_of_few_images_the_last_weights_are_kept_unless_others_are_clearly_better(
    num_images, at_the_end, chosen, tiny_config, monkeypatch
):
    """60 % of 8 images have a standard error of 17 points, of 100 of 4.9. The last raw weights are always better."""
    tops = iter([60, 60, at_the_end + 1 if num_images < 1000 else 0, at_the_end])  # raw, averaged; raw, averaged

    def found(*args, **kwargs):
        top1 = next(tops)
        return Accuracy(top1, 100, 1, num_images, recalls=(top1, top1))

    monkeypatch.setattr(loop, "measure_accuracy", found)
    result = run_training(tiny_config(epochs=None, steps=6))
    best = torch.load(result.output / "best.pt", weights_only=True)["chosen"]
    assert (best["step"], best["weights"]) == (chosen, "averaged weights")


def test_a_report_can_be_made_of_a_run_that_was_stopped(tiny_config, monkeypatch, capsys):
    learn, steps = Learner.learn, [0]

    def die(self, *args):
        steps[0] += 1
        if steps[0] == 5:
            raise RuntimeError("dead")
        return learn(self, *args)

    config = tiny_config()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", die)
        with pytest.raises(RuntimeError, match="dead"):
            run_training(config)
    report = Path(config.output) / "report.html"
    assert not report.exists()
    assert main(["report", config.output, "--device", "cpu"]) == 0
    assert "of 3: the" in report.read_text()
    assert main(["report", str(report.parent.parent)]) == 2
    assert "holds no run: expected a folder with last.pt" in capsys.readouterr().err


def test_a_run_without_a_single_good_step_fails(tiny_config, monkeypatch):
    poison(monkeypatch, set(range(100)))
    with pytest.raises(UserError, match="No step had a finite loss, so that nothing was learnt"):
        run_training(tiny_config())


# Imbalance


@pytest.fixture
def uneven(tmp_path, picture_folder):
    """The folder of pictures with two of twelve training images of a class left."""
    folder = tmp_path / "uneven"
    shutil.copytree(picture_folder, folder)
    for i in range(2, 12):
        (folder / f"train/lying/{i}.png").unlink()
    return folder


def test_a_balanced_run_draws_rare_classes_as_often(uneven, tiny_config, monkeypatch):
    labels = []
    learn = Learner.learn

    def spy(self, batch, step):
        labels.extend(batch.targets.tolist())
        return learn(self, batch, step)

    monkeypatch.setattr(Learner, "learn", spy)
    result = run_training(tiny_config(data=str(uneven), balance=True, batch_size=14, epochs=4))
    assert (labels.count(0), labels.count(1)) == (28, 28)
    assert yaml.safe_load((result.output / "config.yaml").read_text())["best_by"] == "balanced"
    labels.clear()
    run_training(tiny_config(data=str(uneven), batch_size=14, epochs=1, output=str(uneven / "run")))
    assert (labels.count(0), labels.count(1)) == (2, 12)


def test_balance_that_cannot_help_is_refused(uneven, tiny_config):
    with pytest.raises(UserError) as told:
        run_training(tiny_config(balance=True))
    assert str(told.value) == "--balance has no effect: each class has 12 training images. Leave it out."
    (uneven / "train/lying/1.png").unlink()
    with pytest.raises(UserError) as told:
        run_training(tiny_config(data=str(uneven), balance=True))
    assert str(told.value) == (
        "--balance would draw the only training image of a class again and again: lying. "
        "Add images, remove the class, or leave --balance out."
    )


@pytest.mark.parametrize(("best_by", "chosen"), [("top1", 1), ("balanced", 2)])
def test_the_best_weights_are_those_that_were_asked_for(best_by, chosen, tiny_config, monkeypatch, capsys):
    rows = ((60, (90.0, 20.0)), (50, (60.0, 60.0)))
    found = iter([Accuracy(top1, 100, 1, 2000, recalls=recalls) for top1, recalls in rows])
    monkeypatch.setattr(loop, "measure_accuracy", lambda *_, **__: next(found))
    result = run_training(tiny_config(model_ema=False, best_by=best_by))
    best = torch.load(result.output / "best.pt", weights_only=True)["chosen"]
    assert best["step"] == 3 * chosen
    assert best["balanced"] == {1: 55.0, 2: 60.0}[chosen]
    told = {"top1": "best top-1 60.00 % on 2", "balanced": "best balanced accuracy 60.00 %, top-1 50.00 % on 2"}
    assert told[best_by] in capsys.readouterr().out


def test_a_run_that_diverges_still_ends(tiny_config):
    result = run_training(tiny_config(lr=1e30, warmup_epochs=0, clip_grad=None))
    assert result.metrics
    assert (result.output / "best.pt").exists()


# Images that are left out


def test_a_run_keeps_its_own_list_of_images_that_are_left_out(tiny_config, tmp_path, capsys):
    given = tmp_path / "list.txt"
    given.write_text("train/lying/0.png\nval/lying/0.png\n")
    result = run_training(tiny_config(exclude=str(given), epochs=1))
    kept = result.output / "excluded.csv"
    assert kept.read_text() == "image\n" + given.read_text()
    given.unlink()
    assert main(["report", str(result.output), "--device", "cpu"]) == 0
    assert run_training(tiny_config(epochs=1, resume=True, exclude=str(kept))).metrics
    kept.write_text("image\ntrain/lying/0.png\n")
    assert main(["report", str(result.output), "--device", "cpu"]) == 2
    assert "are others now: it would be measured on images that it may have learnt from" in capsys.readouterr().err


def test_names_with_outer_spaces_stay_left_out(tiny_config, picture_folder, tmp_path):
    folder = tmp_path / "spaced"
    shutil.copytree(picture_folder / "train", folder)
    (folder / "lying").rename(folder / " lying")
    (tmp_path / "list.csv").write_text("image\n lying/0.png\n")
    result = run_training(tiny_config(data=str(folder), exclude=str(tmp_path / "list.csv"), epochs=1))
    again = tiny_config(data=str(folder), exclude=str(result.output / "excluded.csv"), epochs=1, resume=True)
    assert run_training(again).metrics == result.metrics
