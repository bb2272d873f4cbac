"""Training is the same for a network of any width: here it takes a fraction of a second."""

import pytest

from t2t_vit.models.names import VARIANTS
from t2t_vit.training import hindsight, setup


@pytest.fixture(scope="module", autouse=True)
def _narrow_networks():
    """The networks of these tests are four narrow blocks, whoever makes them in this process or one forked from it.

    Their speed is measured on one batch after the first.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("t2t_vit_7", "t2t_vit_7_local", "t2t_vit_7_no_t2t"):
            for setting, value in {"embed_dim": 32, "depth": 4, "token_dim": 16}.items():
                patch.setitem(VARIANTS[name].model_args, setting, value)
        patch.setattr(setup, "NUM_REHEARSED", 2)
        yield


@pytest.fixture
def without_report(monkeypatch):
    """Runs end without drawing report.html, which takes longer than all their steps."""
    monkeypatch.setattr(hindsight, "write_report", lambda *args, **kwargs: None)
