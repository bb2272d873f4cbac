"""The files of a run."""

import csv
import dataclasses
import json

import pytest

from t2t_vit.errors import UserError
from t2t_vit.training.run_directory import RunDirectory
from t2t_vit.training.train import run_training


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(tiny_config, tmp_path):
    (tmp_path / "broken.pt").write_text("no checkpoint")
    config = tiny_config(output=str(tmp_path / "new" / "run"))
    with pytest.raises(UserError, match=r"broken\.pt is no checkpoint"):
        run_training(dataclasses.replace(config, checkpoint=str(tmp_path / "broken.pt")))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"]
    (tmp_path / "kept").mkdir()
    RunDirectory(tmp_path / "kept").prepare(resume=False)
    assert [*(tmp_path / "kept").iterdir()] == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"The output folder .*/file/run cannot be written: Not a directory\. Choose"):
        RunDirectory(tmp_path / "file" / "run").prepare(resume=False)


def test_the_table_has_the_columns_of_all_epochs(tmp_path):
    """A run that goes on elsewhere, or under a newer version, may measure more than it did."""
    rows = [{"epoch": 0, "val_top1": 50.0}, {"epoch": 1, "val_top1": 60.0, "memory_gb": 1.5}]
    RunDirectory(tmp_path).write_metrics(rows)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["epoch", "val_top1", "memory_gb"], ["0", "50.0", ""], ["1", "60.0", "1.5"]]
