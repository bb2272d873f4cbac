"""Trackers get every epoch once, also when the run stops and goes on, and never stop it."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed import run as torchrun

from t2t_vit.errors import UserError
from t2t_vit.flags import parse
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.learner import Learner
from t2t_vit.training.trackers import KEPT_IDS, TRACKERS, open_trackers
from t2t_vit.training.train import run_training

SETTINGS = {"lr": 0.1, "model": "t2t_vit_7"}


class FakeWandb(ModuleType):
    """What we use of wandb; notes every call."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged, self.exit_codes = [], [], []

    def init(self, **arguments):
        self.inits.append(arguments)
        return SimpleNamespace(
            id=arguments["id"] or f"id{len(self.inits)}",
            log=lambda metrics, step: self.logged.append((step, metrics)),
            finish=lambda exit_code: self.exit_codes.append(exit_code),
        )


class FakeMlflow(ModuleType):
    """What we use of MLflow; as there, one run is active at a time."""

    def __init__(self):
        super().__init__("mlflow")
        self.runs, self.params, self.logged, self.statuses, self.experiments = [], [], [], [], []
        self.active = None

    def set_experiment(self, name):
        self.experiments.append(name)

    def start_run(self, run_id=None, run_name=None):
        assert self.active is None, "Run with UUID ... is already active"
        self.active = run_id or f"run{len(self.runs)}"
        self.runs.append((self.active, run_name))

    def active_run(self):
        return SimpleNamespace(info=SimpleNamespace(run_id=self.active))

    def log_params(self, params):
        self.params.append(params)

    def log_metrics(self, metrics, step):
        self.logged.append((step, metrics))

    def end_run(self, status):
        self.active = None
        self.statuses.append(status)


def put_in_place(monkeypatch, fake, variable):
    """The stand-in instead of a package, and no variable that names the project."""
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.delenv(variable, raising=False)
    return fake


@pytest.fixture
def wandb(monkeypatch):
    return put_in_place(monkeypatch, FakeWandb(), "WANDB_PROJECT")


@pytest.fixture
def mlflow(monkeypatch):
    return put_in_place(monkeypatch, FakeMlflow(), "MLFLOW_EXPERIMENT_NAME")


@pytest.fixture
def follow(tmp_path):
    """Opens trackers of a run in a directory named `run`; what they warn of gathers in `follow.warnings`."""
    directory = tmp_path / "run"
    directory.mkdir()

    def open_them(*names, first_step=1, resume=False):
        return open_trackers(
            names, directory, SETTINGS, first_step=first_step, resume=resume, warn=open_them.warnings.append
        )

    open_them.warnings, open_them.directory = [], directory
    return open_them


def row(step, **metrics):
    return {"step": step, "val_top1": 10.0 * step, **metrics}


def events_of(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory)).Reload()


def test_tensorboard_gets_the_settings_and_every_epoch(follow):
    trackers = follow("tensorboard")
    trackers.log(row(5, lr=0.5))
    assert len(events_of(follow.directory).Scalars("lr")) == 1  # already: the next moment the run may die
    trackers.log(row(10, lr=0.25))
    trackers.close(finished=True)
    events = events_of(follow.directory)
    assert [(event.step, event.value) for event in events.Scalars("lr")] == [(5, 0.5), (10, 0.25)]
    assert set(events.Tags()["scalars"]) == {"lr", "val_top1"}
    (text,) = events.Tensors("settings/text_summary")
    assert b"| lr | 0.1 |" in text.tensor_proto.string_val[0]


def test_tensorboard_hides_what_a_run_that_died_wrote_of_later_epochs(follow):
    died = follow("tensorboard")
    for step in (5, 10, 15):
        died.log(row(step, val_loss=9.0))  # and never closed
    went_on = follow("tensorboard", first_step=11, resume=True)
    for step in (15, 20):
        went_on.log(row(step, val_loss=5.0))
    went_on.close(finished=True)
    losses = [(event.step, event.value) for event in events_of(follow.directory).Scalars("val_loss")]
    assert losses == [(5, 9.0), (10, 9.0), (15, 5.0), (20, 5.0)]
    died.close(finished=False)


def test_wandb_goes_on_with_the_run_that_it_began(follow, wandb):
    trackers = follow("wandb")
    trackers.log(row(0))
    trackers.close(finished=False)
    trackers = follow("wandb", first_step=2, resume=True)
    trackers.log(row(1))
    trackers.close(finished=True)
    first, second = wandb.inits
    assert (first["project"], first["name"], first["id"], first["config"]) == ("t2t-vit", "run", None, SETTINGS)
    assert (second["id"], second["resume"], second["config"]) == ("id1", "allow", None)
    assert wandb.logged == [(0, {"val_top1": 0.0}), (1, {"val_top1": 10.0})]
    assert wandb.exit_codes == [1, 0]


def test_mlflow_goes_on_with_the_run_that_it_began(follow, mlflow):
    trackers = follow("mlflow")
    trackers.log(row(0))
    trackers.close(finished=False)
    trackers = follow("mlflow", first_step=2, resume=True)
    trackers.log(row(1))
    trackers.close(finished=True)
    assert mlflow.runs == [("run0", "run"), ("run0", None)]
    assert (mlflow.experiments, mlflow.params) == (["t2t-vit"], [SETTINGS])
    assert mlflow.logged == [(0, {"val_top1": 0.0}), (1, {"val_top1": 10.0})]
    assert mlflow.statuses == ["KILLED", "FINISHED"]


def test_a_tracker_that_is_added_later_begins_and_the_others_go_on(follow, wandb, mlflow):
    follow("wandb").close(finished=False)
    follow("mlflow", resume=True).close(finished=False)
    follow("wandb", "mlflow", resume=True).close(finished=True)
    assert [arguments["id"] for arguments in wandb.inits] == [None, "id1"]
    assert [run for run, _ in mlflow.runs] == ["run0", "run0"]


def test_a_new_run_in_the_same_directory_is_a_new_one_to_the_trackers(follow, wandb):
    follow("wandb").close(finished=False)
    follow("wandb").close(finished=False)
    assert [arguments["id"] for arguments in wandb.inits] == [None, None]
    assert json.loads((follow.directory / KEPT_IDS).read_text()) == {"wandb": "id2"}


def test_what_is_not_installed_is_told_at_once(follow, wandb, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        UserError, match=r"^--log-to tensorboard mlflow: .* pip install 't2t-vit\[tensorboard,mlflow\]'"
    ):
        follow("tensorboard", "wandb", "mlflow")
    assert wandb.inits == []


def test_a_tracker_that_does_not_start_is_told_and_the_others_are_closed(follow, wandb, mlflow, monkeypatch):
    monkeypatch.setattr(mlflow, "set_experiment", lambda name: (_ for _ in ()).throw(OSError("no server")))
    with pytest.raises(UserError, match=r"^--log-to mlflow does not start: no server\. Mend that"):
        follow("wandb", "mlflow")
    assert wandb.exit_codes == [1]


def test_a_tracker_that_fails_later_is_told_and_the_others_get_their_row(follow, wandb, mlflow, monkeypatch):
    trackers = follow("mlflow", "wandb")
    monkeypatch.setattr(mlflow, "log_metrics", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no server")))
    trackers.log(row(0))
    assert follow.warnings == ["warning: mlflow failed, the run goes on: OSError: no server"]
    assert wandb.logged == [(0, {"val_top1": 0.0})]


def test_the_flag_names_every_tracker():
    config = parse(TrainConfig, ["digits", "--log-to", *TRACKERS], prog="t2t-vit train")
    assert config.log_to == ("tensorboard", "wandb", "mlflow")
    assert parse(TrainConfig, ["digits", "--log-to", "none"], prog="t2t-vit train").log_to is None
    with pytest.raises(UserError, match=r"Unknown value of --log-to: 'tensorbord'\. Did you mean tensorboard"):
        parse(TrainConfig, ["digits", "--log-to", "tensorbord"], prog="t2t-vit train")


def test_torchrun_leaves_the_flag_alone():
    """It takes what begins like one of its own flags for it, after the program's name too: --log would be none."""
    words = ["-m", "t2t_vit", "train", "digits", "--log-to", "wandb"]
    assert torchrun.parse_args(words).training_script_args == words[2:]


def test_a_run_that_stops_and_goes_on_is_one_run_to_its_trackers(tiny_config, wandb, mlflow, monkeypatch):
    learn, steps = Learner.learn, [0]

    def die_in_the_second_epoch(self, batch, step):
        steps[0] += 1
        if steps[0] == 5:
            raise RuntimeError("dead")
        return learn(self, batch, step)

    settings = {"epochs": 3, "log_to": ("tensorboard", "wandb", "mlflow")}
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", die_in_the_second_epoch)
        with pytest.raises(RuntimeError, match="dead"):
            run_training(tiny_config(**settings))
    result = run_training(tiny_config(**settings, resume=True))
    lists = {"val_recalls", "ema_recalls"}
    rows = [(row["step"], {key: row[key] for key in row if key not in {"step", *lists}}) for row in result.metrics]
    assert wandb.logged == rows
    assert mlflow.logged == rows
    assert [event.step for event in events_of(result.output).Scalars("val_top1")] == [3, 6, 9]
    assert (wandb.exit_codes, mlflow.statuses) == ([1, 0], ["KILLED", "FINISHED"])
    assert wandb.inits[0]["config"]["batch_size"] == 8
    assert json.loads((result.output / KEPT_IDS).read_text()) == {"wandb": "id1", "mlflow": "run0"}


def test_a_missing_package_ends_a_run_before_its_first_step(tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(Learner, "learn", lambda *args: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match=r"--log-to wandb: not installed here"):
        run_training(tiny_config(log_to=("wandb",)))


def test_a_tracker_that_fails_costs_no_epoch(tiny_config, wandb, monkeypatch, capsys):
    monkeypatch.setattr(
        wandb, "init", lambda **arguments: SimpleNamespace(id="x", log=None, finish=lambda exit_code: None)
    )
    assert len(run_training(tiny_config(log_to=("wandb",))).metrics) == 2
    assert capsys.readouterr().out.count("warning: wandb failed, the run goes on") == 2
