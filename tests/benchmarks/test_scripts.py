"""The scripts of the repository use names of the package: they must still be there."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_finds_what_it_imports(path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    assert callable(runpy.run_path(str(path))["main"])
