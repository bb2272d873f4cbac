"""The files of a run."""

import csv
import json

from t2t_vit.training.run_directory import RunDirectory


def test_the_table_has_the_columns_of_all_epochs(tmp_path):
    """A run that goes on elsewhere, or under a newer version, may measure more than it did."""
    rows = [{"epoch": 0, "val_top1": 50.0}, {"epoch": 1, "val_top1": 60.0, "memory_gb": 1.5}]
    RunDirectory(tmp_path).write_metrics(rows)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["epoch", "val_top1", "memory_gb"], ["0", "50.0", ""], ["1", "60.0", "1.5"]]
