"""A pytest plugin that runs timm's own model tests, from its unmodified file, over the models of t2t_vit.

    PYTHONPATH=tests/timm_suite python -m pytest -p timm_suite -c TIMM/pyproject.toml TIMM/tests/test_models.py

TIMM is timm's source distribution, unpacked; `make test-timm` fetches it and runs this. timm's tests ask
`timm.list_models` which models there are: here it answers with ours.
"""

import os
from collections import Counter

import pytest

# Where this is set, timm's file leaves out one of the ten tests, for the memory of the machines there.
os.environ.pop("GITHUB_ACTIONS", None)

import timm

import t2t_vit

# The ten that apply: the others are about single networks of timm's, or need its files from the network.
TESTS = [
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs_non_std",
    "test_model_forward_torchscript",
    "test_model_forward_intermediates_features",
    "test_model_forward_intermediates",
    "test_prune_intermediate_layers_contract",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
]

_list_models_of_timm = timm.list_models


def _list_our_models(*_filters: object, include_tags: bool = False, **_more_filters: object) -> list[str]:
    """Every model of ours, whichever of timm's families a test asks for."""
    return _list_models_of_timm(t2t_vit.list_models(), include_tags=include_tags)


timm.list_models = _list_our_models


def _test_name(node_id: str) -> str:
    return node_id.rpartition("::")[2].partition("[")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the ten tests, and insists that each is there for every model."""
    kept = [item for item in items if _test_name(item.nodeid) in TESTS]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    counts = Counter(_test_name(item.nodeid) for item in items)
    few = [test for test in TESTS if counts[test] < len(t2t_vit.list_models())]
    if few:
        raise pytest.UsageError(f"timm's file does not run these over all of our models: {', '.join(few)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The counts of each test."""
    terminalreporter.section(f"timm {timm.__version__}: its tests over {len(t2t_vit.list_models())} models")
    for test in TESTS:
        counts = {
            outcome: sum(_test_name(report.nodeid) == test for report in terminalreporter.stats.get(outcome, []))
            for outcome in ("passed", "failed", "error", "skipped")
        }
        shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        terminalreporter.line(f"{test:<44}{shown or 'not run'}")
