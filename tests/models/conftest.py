"""Weights and inputs that can be rebuilt anywhere, with which the official networks' numbers were made."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent.parent / "golden"


def filled(key: str, value: Tensor) -> Tensor:
    """The value of a state-dict entry: standard normal numbers seeded by its key, scaled by what it is."""
    if key.endswith("pos_embed"):
        return value
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(value.shape)).astype(np.float32)
    if key.endswith(".weight") and any(part in key for part in ("norm", ".ln1.", ".ln2.")):
        z = 1 + 0.2 * z
    elif key.endswith(".bias"):
        z = 0.1 * z
    elif key.endswith("cls_token"):
        z = 0.5 * z
    elif "cheap_operation" in key:
        z = 1 + 0.2 * z
    elif not key.endswith(".w"):
        z = z / np.sqrt(np.prod(z.shape[1:]))
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


@pytest.fixture(scope="session")
def fill():
    """Gives a network the weights of the golden numbers."""

    def fill_model(model: nn.Module) -> nn.Module:
        model.load_state_dict({key: filled(key, value) for key, value in model.state_dict().items()})
        return model

    return fill_model


@pytest.fixture(scope="session")
def fill_tensor():
    """The golden weight of one key."""
    return filled


@pytest.fixture(scope="session")
def golden_images():
    """The golden input of a size, (2, 3, size, size)."""

    def images(size: int, seed: int | None = None) -> Tensor:
        rng = np.random.default_rng(20260101 + size if seed is None else seed)
        return torch.from_numpy(rng.standard_normal((2, 3, size, size)).astype(np.float32))

    return images


@pytest.fixture(scope="session")
def golden():
    """A file of golden numbers."""

    def load(name: str) -> dict[str, Any]:
        return json.loads((GOLDEN / name).read_text())

    return load
