"""`benchmarks/small_study.py`: its arms, its table, and what it makes of a table. Nothing is trained."""

from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from t2t_vit.errors import UserError

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    import small_study

    return small_study


@pytest.fixture
def words(tmp_path):
    """The words of a command, with a set of two classes of three and four images."""
    for name, count in (("a", 3), ("b", 4)):
        (tmp_path / "few" / "train" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "few" / "train" / name / f"{number}.png").touch()
    return Namespace(sets_folder=tmp_path, sets=["few"], labels=["2", "all"], seeds=2, steps=25, time=None)


def test_a_grid_multiplies_the_arms_of_the_file(study):
    arms = study.read_arms(study.ARMS, ["t2t", "resnet18"], ["lr=2e-4,1e-3", "weight_decay=0.2"])
    assert list(arms) == [f"{arm} lr={lr} weight_decay=0.2" for arm in ("t2t", "resnet18") for lr in ("2e-4", "1e-3")]
    point = {"lr": "1e-3", "weight_decay": "0.2"}
    assert arms["t2t lr=1e-3 weight_decay=0.2"] == {"model": "t2t_vit_7", "opt": "adamw", **point}
    with pytest.raises(UserError, match=r"Unknown arm 'resnet81'\. Did you mean resnet18"):
        study.read_arms(study.ARMS, ["resnet81"], [])


def test_runs_share_budget_and_labels_but_for_what_an_arm_says(study, words):
    arms = {"t2t": {"model": "t2t_vit_7", "lr": "1e-3"}, "long": {"model": "t2t_vit_7", "steps": 40}}
    jobs = list(study.jobs_of(arms, words))
    assert [job.identity for job in jobs[:4]] == [
        ("t2t", "few", "2", "0", "25 steps"), ("long", "few", "2", "0", "25 steps"),
        ("t2t", "few", "all", "0", "25 steps"), ("long", "few", "all", "0", "25 steps"),
    ]  # fmt: skip
    configs = [job.config for job in jobs]
    assert [config.labels for config in configs[:4]] == [4, 4, 7, 7]
    assert [(config.steps, config.eval_every) for config in configs[:2]] == [(25, 3), (40, 4)]
    assert (configs[0].lr, configs[0].recipe, configs[0].crop_pct, jobs[-1].config.seed) == (1e-3, "small", 1.0, 1)

    words.time = 60
    (timed, *_) = study.jobs_of({"t2t": {}}, words)
    assert (timed.config.max_time, timed.config.steps, timed.row["budget"]) == ("60s", None, "60 s")


def test_half_a_row_of_a_killed_run_is_replaced(study, tmp_path):
    file = tmp_path / "results.csv"
    row = dict.fromkeys(study.COLUMNS, "1") | {"arm": "t2t é", "settings": '{"lr": 0.1, "model": "t2t_vit_7"}'}
    study.append(file, row)
    with file.open("a") as table:
        table.write("resnet18,digits")
    assert study.read_rows([file]) == [row]
    study.append(file, row | {"seed": "2"})
    assert study.read_rows([file]) == [row, row | {"seed": "2"}]


def test_other_settings_under_the_same_name_are_refused(study, words, tmp_path):
    (job, *_) = study.jobs_of({"t2t": {"lr": 1e-3}}, words)
    study.append(tmp_path / "results.csv", {**dict.fromkeys(study.COLUMNS, "1"), **job.row})
    assert study.run_jobs([job], tmp_path / "results.csv", keep=None, quiet=True) == 0
    (other, *_) = study.jobs_of({"t2t": {"lr": 2e-3}}, words)
    with pytest.raises(UserError, match="t2t, few, 2 labels a class, seed 0, 25 steps with other settings"):
        study.run_jobs([other], tmp_path / "results.csv", keep=None, quiet=True)


def rows_of(arm, cells):
    """Rows of a table with these accuracies, by labels of a class and by seed."""
    return [
        {"arm": arm, "set": "digits", "labels_per_class": labels, "seed": str(seed), "budget": "9 steps",
         "top1": str(top1), "cpu_s": "7"}
        for labels, accuracies in cells.items()
        for seed, top1 in enumerate(accuracies)
    ]  # fmt: skip


def test_a_summary_pairs_the_seeds_and_marks_what_counts(study):
    rows = rows_of("t2t", {"10": [80, 90], "20": [90, 92]}) + rows_of("new", {"10": [83, 94, 99], "20": [90, 92]})
    told = study.summarize(rows, base="t2t", metric="top1", best_of_grid=False)
    assert "| t2t | 85.00 ± 5.00 (2) | 91.00 ± 1.00 (2) |" in told
    assert "| arm | digits 10 | digits 20 | digits mean |" in told
    assert "| new | **+3.50 ± 0.50 (2)** | +0.00 ± 0.00 (2) | **+1.75 ± 0.25 (2)** |" in told
    assert "| new | 7 | 7 |" in told


def test_curves_are_drawn_where_an_arm_has_several_numbers_of_labels(study, tmp_path):
    rows = rows_of("t2t", {"10": [80, 90], "20": [90, 92]}) + rows_of("single", {"10": [83, 94]})
    for row in rows:
        row["labels"] = str(int(row["labels_per_class"]) * 10)
    study.plot(rows, tmp_path / "curves.png", metric="top1")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000
        assert picture.convert("L").getextrema() == (0, 255) or picture.convert("L").getextrema()[0] < 128
    with pytest.raises(UserError, match="have no arm with several numbers"):
        study.plot(rows[-2:], tmp_path / "none.png", metric="top1")
    with pytest.raises(UserError, match="draws accuracies"):
        study.plot(rows, tmp_path / "none.png", metric="loss")


def test_the_best_point_of_a_grid_is_that_of_the_runs_which_all_points_have(study):
    rows = rows_of("t2t lr=1", {"10": [80, 90]}) + rows_of("t2t lr=2", {"10": [81, 91], "20": [10]})
    rows += rows_of("new", {"10": [70, 71]})
    assert study.best_points(rows, "top1") == {"t2t": "t2t lr=2", "new": "new"}
    told = study.summarize(rows, base="t2t", metric="top1", best_of_grid=True)
    assert "best of the grid by top1: t2t lr=2, new" in told
    assert "| new | -15.50 ± 4.50 (2) |" in told
