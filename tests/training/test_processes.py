"""Several processes train as one does: what they find, what they write and say, and that nothing is lost."""

import contextlib
import json
import os
import shutil
import signal
import time
import warnings
from datetime import timedelta

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import start_processes

from t2t_vit.cli import main
from t2t_vit.data.loading import EpochBatches
from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError
from t2t_vit.inference.evaluate import measure_accuracy
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import find_machine
from t2t_vit.training.checkpointer import read_training_state
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.learner import Learner
from t2t_vit.training.loop import fit
from t2t_vit.training.setup import setup
from t2t_vit.training.train import run_training

pytestmark = pytest.mark.slow

SETTINGS = {
    "model": "t2t_vit_7", "img_size": 32, "epochs": 2, "eval_share": 1.0, "warmup_epochs": 0, "batch_size": 8,
    "device": "cpu", "amp": False, "workers": 0,
}  # fmt: skip
NO_DROPOUT = {
    "model": "t2t_vit_7_no_t2t", "batch_size": 4, "grad_accum_steps": 2, "drop_path": 0.0, "opt": "sgd",
    "momentum": 0.9, "lr": 0.02,
}  # fmt: skip
EVERYTHING = {
    "mixup": 0.8, "cutmix": 1.0, "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25, "drop": 0.1, "drop_path": 0.2,
    "grad_accum_steps": 2, "aug_repeats": 2, "checkpoint_every": 2,
}  # fmt: skip
EVALUATED = (1, 2, 5, 8)
MISTAKES = {
    "data": ["no-such-folder"],
    "flag": ["digits", "--epoch-count", "1"],
    "settings": ["digits", "--epochs", "0"],
    "image size": ["digits", "--model", "t2t_vit_7", "--img-size", "2"],
    "shares": ["digits", "--batch-size", "7"],
    "lonely images": ["digits", "--batch-size", "2", "--mixup", "0.8"],
    "output": ["digits", "--output", "/dev/null/run"],
}


def config_of(data, output, **changes):
    return TrainConfig(**{**SETTINGS, "data": str(data), "output": str(output), **changes})


def in_two_processes(folder, jobs):
    """Runs each job(rank) in two forked processes that know each other.

    Returns what the jobs returned and what was said in them, each by rank and by the job's name.
    """
    folder.mkdir()

    def process(rank):
        warnings.filterwarnings("ignore", "Grad strides do not match")  # where a part is one image
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        found = {}
        for name, job in jobs.items():
            torch.distributed.init_process_group(
                "gloo", f"file://{folder}/{name}", rank=rank, world_size=2, timeout=timedelta(minutes=1)
            )
            said = (folder / f"{name}-{rank}").open("w")
            with said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                found[name] = job(rank)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        (folder / f"found-{rank}").write_text(json.dumps(found))

    start_processes(process, nprocs=2, start_method="fork")
    found = [json.loads((folder / f"found-{rank}").read_text()) for rank in (0, 1)]
    return found, [{name: (folder / f"{name}-{rank}").read_text() for name in jobs} for rank in (0, 1)]


def signal_itself_before_step(monkeypatch, number, step):
    """Before its n-th step, counted from 0, the process gets the signal."""
    original, steps = Learner.learn, [0]

    def take_step(self, *args):
        if steps[0] == step:
            os.kill(os.getpid(), number)
        steps[0] += 1
        return original(self, *args)

    monkeypatch.setattr(Learner, "learn", take_step)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def broken_folder(picture_folder, work):
    """Unreadable are both images that process 0 of two gets in the first batch, and one of another batch."""
    names = open_source(str(picture_folder)).train.names
    batches = list(EpochBatches(len(names), batch_size=4, rank=0, world_size=2))
    folder = work / "broken"
    shutil.copytree(picture_folder, folder)
    for draw in (*batches[0], batches[2][1]):
        (folder / names[draw.image_index]).write_bytes(b"no image")
    return folder


def evaluate_some(folder):
    """Accuracy and loss over the first images of the validation part, for several numbers of them."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    images, machine = open_source(str(folder)).val, find_machine("cpu", amp=False)
    data_config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    predictor = Predictor(model, machine=machine, data_config=data_config, class_names="ab")
    found = []
    for count in EVALUATED:
        part = images.subset(range(count))
        loader = evaluation_loader(part, data_config, batch_size=3, machine=machine, workers=0)
        accuracy = measure_accuracy(predictor, loader, Display(silent=True))
        found.append([accuracy.num_images, accuracy.loss, accuracy.top1])
    return found


@pytest.fixture(scope="module")
def two(broken_folder, picture_folder, work):
    """What two processes found and said, all in one start."""

    def curve(rank):  # were the second process to write anything, it would lie in a folder of its own
        return run_training(config_of(broken_folder, work / f"curve-{rank}", **NO_DROPOUT)).metrics

    def stopped(rank):
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                signal_itself_before_step(patch, signal.SIGTERM, step=4)
            return run_training(config_of(picture_folder, work / "stopped", **EVERYTHING)).interrupted

    def full_disk(rank):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "save", lambda contents, file: (_ for _ in ()).throw(OSError(28, "No space left")))
            try:
                run_training(config_of(picture_folder, work / "full", epochs=1))
            except UserError as error:
                return str(error)

    def mistake(words):
        def make(rank):
            began = time.monotonic()
            return main(["train", *words, "--device", "cpu"]), time.monotonic() - began

        return make

    def batch_norm(rank):
        config = config_of(picture_folder, work / "batch-norm", model="test_resnet", epochs=1)
        run = setup(config)
        fit(run)
        return [value.double().sum().item() for name, value in run.model.named_buffers() if "running" in name]

    def refitted(rank):
        config = config_of(picture_folder, work / "refitted", **NO_DROPOUT, refit_head=True)
        return run_training(config).best_top1

    def gone_back(rank):
        """From weights without a head: each process makes another one when it reads them again."""
        weights = torch.load(work / "whole" / "best.pt")["state_dict"]
        start = work / f"headless-{rank}.pt"
        torch.save({name: tensor for name, tensor in weights.items() if not name.startswith("head.")}, start)
        settings = {"checkpoint": str(start), "refit_head": True, "start_share": 0.5}
        return run_training(config_of(picture_folder, work / "gone-back", **settings)).best_top1

    def measured(rank):
        words = [str(picture_folder), "--checkpoint", str(work / "whole" / "best.pt"), "--device", "cpu", "-j", "0"]
        return main(["eval", *words])

    jobs = {
        "curve": curve,
        "evaluations": lambda rank: evaluate_some(picture_folder),
        "whole": lambda rank: run_training(config_of(picture_folder, work / "whole", **EVERYTHING)).interrupted,
        "stopped": stopped,
        "resumed": lambda rank: (
            run_training(config_of(picture_folder, work / "stopped", **EVERYTHING, resume=True, workers=1)).interrupted
        ),
        "full disk": full_disk,
        "eval": measured,
        "batch norm": batch_norm,
        "refitted": refitted,
        "gone back": gone_back,
    }
    found, said = in_two_processes(work / "two", jobs | {name: mistake(words) for name, words in MISTAKES.items()})
    return {"found": found, "said": said}


def test_the_loss_curve_is_that_of_one_process(two, broken_folder, work):
    """Without dropout; with accumulation, and with images missing in one process, once all it had of a batch."""
    one = run_training(config_of(broken_folder, work / "curve-of-one", **NO_DROPOUT))
    for metrics in (found["curve"] for found in two["found"]):
        for row, expected in zip(metrics, one.metrics, strict=True):
            for key in ("lr", "train_loss", "val_loss", "val_top1", "ema_top1"):
                assert row[key] == pytest.approx(expected[key], rel=1e-5), key
    ours, theirs = (read_training_state(work / run / "last.pt") for run in ("curve-0", "curve-of-one"))
    for part in ("state_dict", "state_dict_ema"):
        for key, value in ours[part].items():
            torch.testing.assert_close(value, theirs[part][key], rtol=1e-4, atol=1e-6)
    assert sorted(ours["progress"]["unreadable"]) == sorted(theirs["progress"]["unreadable"])
    assert len(ours["progress"]["unreadable"]) == 3


def test_an_evaluation_counts_every_image_once(two, picture_folder):
    expected = evaluate_some(picture_folder)
    assert [count for count, _, _ in expected] == list(EVALUATED)
    for found in two["found"]:
        for ours, theirs in zip(found["evaluations"], expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)


def test_only_the_first_process_writes_and_prints(two, work):
    first, second = two["said"]
    assert "on 2 x cpu, float32" in first["curve"]
    assert "training images that could not be read and were left out: 3" in first["curve"]
    assert {name: text for name, text in second.items() if text} == {}
    assert (work / "curve-0" / "last.pt").exists()
    assert not (work / "curve-1").exists()


def test_eval_by_two_processes_is_told_once(two, picture_folder, work, capsys):
    assert [found["eval"] for found in two["found"]] == [0, 0]
    main(["eval", str(picture_folder), "--checkpoint", str(work / "whole" / "best.pt"), "--device", "cpu", "-j", "0"])
    assert two["said"][0]["eval"].replace("2 x cpu", "cpu") == capsys.readouterr().out


def test_all_processes_have_the_batch_norm_statistics_that_are_saved(two, work):
    first, second = (found["batch norm"] for found in two["found"])
    assert first
    assert second == first
    saved = read_training_state(work / "batch-norm" / "last.pt")["state_dict"]
    assert first == [value.double().sum().item() for name, value in saved.items() if "running" in name]


def test_the_fitted_head_is_that_of_one_process(two, picture_folder, work):
    one = run_training(config_of(picture_folder, work / "refitted-by-one", **NO_DROPOUT, refit_head=True))
    assert [found["refitted"] for found in two["found"]] == [one.best_top1] * 2
    ours, theirs = (torch.load(work / run / "best.pt") for run in ("refitted", "refitted-by-one"))
    assert ours["chosen"] == theirs["chosen"]
    assert ours["chosen"]["refitted"]
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(ours["state_dict"][name], theirs["state_dict"][name], rtol=1e-2, atol=1e-3)


def test_the_head_is_fitted_in_all_processes_to_weights_that_went_back(two, work):
    chosen = torch.load(work / "gone-back" / "best.pt")["chosen"]
    assert [found["gone back"] for found in two["found"]] == [chosen["top1"]] * 2
    assert (chosen["refitted"], chosen["start_share"]) == (True, 0.5)


def test_a_signal_to_one_process_makes_all_save_and_leave_and_nothing_is_lost(two, work):
    assert [found["stopped"] for found in two["found"]] == [143, 143]
    assert "Stopped and saved" in two["said"][0]["stopped"]
    assert "at step 6 of 6" in two["said"][0]["resumed"]
    assert_same_state(work / "stopped", work / "whole")


def test_a_checkpoint_that_cannot_be_written_ends_every_process(two):
    for found in two["found"]:
        assert "No space left" in found["full disk"]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_every_process_at_once_and_is_told_in_one_line(name, two):
    for found in two["found"]:
        code, seconds = found[name]
        assert code == 2
        assert seconds < 10
    first, second = (said[name].splitlines() for said in two["said"])
    assert len(first) == 1
    assert first[0].startswith("t2t-vit: error: ")
    assert second == []


def test_more_processes_than_gpus_are_refused_in_every_one_of_them(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"2 processes on this machine cannot share 1 GPU\(s\): start one for each"):
        find_machine("cuda")


def test_a_killed_process_is_restarted_and_training_goes_on(two, picture_folder, work, monkeypatch):
    """What `torchrun --max-restarts 1` does, with processes that are forked, so that they need not import torch."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # or gloo does not start again

    def process():
        with (work / f"killed-{os.environ['RANK']}").open("a") as said, contextlib.redirect_stdout(said):
            if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
                signal_itself_before_step(pytest.MonkeyPatch(), signal.SIGKILL, step=5)
            run_training(config_of(picture_folder, work / "killed", **EVERYTHING, resume=True))

    def agent(_):
        launch = LaunchConfig(
            1, 1, 2, max_restarts=1, start_method="fork", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            monitor_interval=0.05,
        )  # fmt: skip
        elastic_launch(launch, process)()

    start_processes(agent, nprocs=1, start_method="fork")  # it takes over the signals of its process
    said = (work / "killed-0").read_text()
    assert "the run starts fresh" in said
    assert "at step 5 of 6" in said
    assert_same_state(work / "killed", work / "whole")


def assert_same_state(run, other):
    ours, theirs = (read_training_state(path / "last.pt") for path in (run, other))
    for part in ("state_dict", "state_dict_ema"):
        assert [key for key in theirs[part] if not torch.equal(ours[part][key], theirs[part][key])] == []
    for index, moments in theirs["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(ours["optimizer"]["state"][index][key], value)
    assert len(ours["progress"]["metrics"]) == 2
    for row, expected in zip(ours["progress"]["metrics"], theirs["progress"]["metrics"], strict=True):
        for key in ("epoch", "train_loss", "val_loss", "val_top1", "ema_top1"):
            assert row[key] == pytest.approx(expected[key], rel=1e-12)
