"""How long a run trains, and when it is evaluated."""

import copy
import json
import time

import pytest

from t2t_vit.errors import UserError
from t2t_vit.options import configure
from t2t_vit.pictures.report import Best
from t2t_vit.runtime.durations import parse_duration
from t2t_vit.training.checkpointer import read_training_state
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.plan import CPU_LIMIT_S, Plan, Speed, expectation, make_plan, measure_speed
from t2t_vit.training.setup import setup
from t2t_vit.training.train import run_training

FAST = Speed(step_s=0.1, image_s=0.001)


def plan_of(*, speed=FAST, num_val=1000, steps_per_epoch=10, on_cpu=True, probe_s=0.0, **settings):
    config = configure(TrainConfig, data="folder", model="t2t_vit_7", **{"refit_head": False, **settings})
    return make_plan(
        config,
        speed,
        num_val=num_val,
        steps_per_epoch=steps_per_epoch,
        on_cpu=on_cpu,
        probe_s=probe_s,
        num_train=10_000,
    )


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("0.5h", 1800), ("45", 45), ("1M30S", 90)]
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0s", "5 apples", "1m1h"])
def test_a_duration_that_is_none_is_told(text):
    with pytest.raises(UserError, match="--max-time: expected a duration such as 90s, 20m or 1h30m, got"):
        plan_of(max_time=text)


def test_steps_epochs_and_time_exclude_each_other():
    with pytest.raises(UserError, match="epochs has no effect beside --steps 5"):
        plan_of(epochs=3, steps=5)
    with pytest.raises(UserError, match="steps has no effect beside --max-time 5m"):
        plan_of(max_time="5m", steps=5)


def test_steps_and_epochs_are_taken_as_given():
    assert plan_of(steps=77).num_steps == 77
    assert plan_of(epochs=3).num_steps == 30
    assert configure(TrainConfig, data="digits", steps=77).epochs is None  # not the recipe's 12


def test_what_nobody_says_is_a_hundred_passes_and_enough_steps():
    assert plan_of(steps_per_epoch=2).num_steps == 600
    assert plan_of(steps_per_epoch=28).num_steps == 2800
    assert plan_of(steps_per_epoch=300, on_cpu=False).num_steps == 30_000


def test_a_probe_is_part_of_what_evaluations_may_take():
    often, seldom = (plan_of(steps=2000, speed=Speed(0.1, 1e-4), probe_s=probe_s) for probe_s in (0.0, 5.0))
    rounds = seldom.num_steps // seldom.eval_every
    assert rounds < often.num_steps // often.eval_every
    assert rounds * (5.0 + 2 * seldom.eval_images * 1e-4) <= 0.15 * 200
    less, more = (plan_of(max_time="60s", probe_s=probe_s).num_steps for probe_s in (5.0, 0.0))
    assert less < more


def test_a_cpu_is_never_busy_for_hours_by_default():
    plan = plan_of(steps_per_epoch=300, speed=Speed(0.4, 0.01))
    assert plan.num_steps < 30_000
    assert plan.num_steps * 0.4 * 1.1 + 4 * 1000 * 0.01 == pytest.approx(CPU_LIMIT_S, rel=0.01)
    assert plan.is_estimate


def test_time_is_turned_into_steps_with_room_for_the_evaluations():
    plan = plan_of(max_time="100s", eval_share=0.25)
    assert plan.num_steps == int((100 - 4) / 1.25 / 0.1)
    half = plan.num_steps // 2
    assert plan.corrected(step=half, elapsed_s=48).num_steps == pytest.approx(plan.num_steps, abs=2)
    slower = plan.corrected(step=half, elapsed_s=72)  # as quick as that, 24 s are left
    assert slower.num_steps == half + half // 3
    assert not slower.is_estimate
    limited = plan_of(max_time=None, steps_per_epoch=300, speed=Speed(0.4, 0.01))
    assert limited.corrected(step=100, elapsed_s=1).num_steps == limited.wanted == 30_000


@pytest.mark.parametrize("num_val", [20, 2000, 100_000])
@pytest.mark.parametrize("steps", [600, 5000])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_evaluations_in_between_take_their_share_at_most(num_val, steps, share):
    plan = plan_of(steps=steps, num_val=num_val, eval_share=share)
    times = -(-steps // plan.eval_every) - 1  # besides the last one
    evaluating_s = times * 2 * plan.eval_images * FAST.image_s
    assert evaluating_s <= share * (steps * FAST.step_s + evaluating_s) * 1.01
    assert plan.eval_every % 10 == 0
    assert plan.eval_images == num_val or plan.eval_images >= 500


def test_evaluations_may_be_asked_for():
    assert plan_of(epochs=5, eval_share=1.0).eval_every == 10
    assert plan_of(epochs=5, eval_every=7).eval_every == 7


def test_time_has_room_for_a_head_that_is_fitted_anew():
    """5,000 of the training images, and twice the validation images."""
    assert plan_of(refit_head=True).final_s - plan_of().final_s == pytest.approx(7000 * FAST.image_s)


def test_the_expectation_is_told():
    plan = Plan(num_steps=600, eval_every=150, eval_images=500, final_s=8.0)
    assert expectation(plan, FAST, networks=2, num_val=2000) == (
        "expected: 1:12 for 600 steps of 0.1 s, 500 of 2,000 validation images every 150 steps"
    )


# In a run


def test_evaluations_in_between_take_a_part_and_the_last_one_all(tiny_config, monkeypatch, capsys):
    """The best weights of before are measured on all images too, and best.pt says on how many it was chosen."""
    monkeypatch.setattr("t2t_vit.training.setup.make_plan", lambda *args, **kwargs: Plan(6, 2, 3))
    result = run_training(tiny_config())
    assert [(row["step"], row["val_images"]) for row in result.metrics] == [(2, 3), (4, 3), (6, 8)]
    assert "on 8 images" in capsys.readouterr().out
    state = read_training_state(result.output / "last.pt")
    assert Best(*state["progress"]["best"]).num_images == 8


@pytest.mark.slow
def test_the_weights_do_not_depend_on_how_often_they_are_evaluated(tiny_config, tmp_path):
    one = run_training(tiny_config(eval_share=0.1, eval_every=1, output=str(tmp_path / "often")))
    other = run_training(tiny_config(eval_share=0.1, eval_every=6, output=str(tmp_path / "once")))
    assert (len(one.metrics), len(other.metrics)) == (6, 1)
    ours, theirs = (read_training_state(run.output / "last.pt")["state_dict"] for run in (one, other))
    assert all(ours[key].equal(theirs[key]) for key in ours)


@pytest.mark.slow
def test_patience_ends_a_run_that_gets_no_better(tiny_config, capsys):
    result = run_training(tiny_config(epochs=9, lr=1e-9, min_lr=0.0, patience=2))
    assert len(result.metrics) == 3
    assert result.interrupted is None
    assert "stopped early: step 3 is still the best, and --patience 2 is at its end" in capsys.readouterr().out
    assert (result.output / "report.html").exists()
    again = run_training(tiny_config(epochs=9, lr=1e-9, min_lr=0.0, patience=2, resume=True))
    assert again.metrics == result.metrics  # it does not train on


def test_patience_that_ends_on_a_part_of_the_images_evaluates_all(tiny_config, monkeypatch):
    monkeypatch.setattr("t2t_vit.training.setup.make_plan", lambda *args, **kwargs: Plan(30, 2, 3))
    result = run_training(tiny_config(lr=1e-9, min_lr=0.0, patience=2))
    assert [(row["step"], row["val_images"]) for row in result.metrics] == [(2, 3), (4, 3), (6, 8)]
    assert result.metrics[-1]["train_loss"] > 0
    assert result.metrics[-1]["images_per_second"] > 0


def test_the_rehearsal_counts_waiting_and_leaves_no_trace(tiny_config):
    """Of the speed: 0.05 s for each batch to come, though computing it takes less. The first batch is no part of it."""
    run = setup(tiny_config(model_ema=True))
    before = copy.deepcopy(run.learner.state())
    batch = next(iter(run.train_loader))

    def slowly(first_s):
        for wait_s in (first_s, 0.05, 0.05, 0.05):
            time.sleep(wait_s)
            yield batch

    speed = measure_speed(run.learner, slowly(0.5), slowly(0.5))
    num_images = len(batch.images)
    assert 0.05 < speed.step_s < 0.2
    assert 0.05 / num_images < speed.image_s < 0.2 / num_images
    after = run.learner.state()
    for part in ("state_dict", "state_dict_ema"):
        assert all(after[part][name].equal(value) for name, value in before[part].items())
    assert after["optimizer"]["state"] == {}


@pytest.mark.slow
def test_a_time_limit_becomes_steps_that_a_resumed_run_keeps(tiny_config, monkeypatch):
    result = run_training(tiny_config(epochs=None, max_time="4s"))
    plan = read_training_state(result.output / "last.pt")["progress"]["plan"]
    assert result.metrics[-1]["step"] == plan["num_steps"]
    assert not plan["is_estimate"]
    again = run_training(tiny_config(epochs=None, max_time="4s", resume=True))
    assert again.metrics == result.metrics
    assert json.loads((result.output / "metrics.jsonl").read_text().splitlines()[-1])["step"] == plan["num_steps"]


def test_a_process_without_an_image_to_validate_measures_nothing(tiny_config):
    """Of two processes and one image, the second has none."""
    run = setup(tiny_config())
    batch = next(iter(run.train_loader))
    assert measure_speed(run.learner, [batch], []).image_s == 0
