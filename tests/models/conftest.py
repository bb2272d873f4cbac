"""Networks with known weights, files of them in every format, and the inputs of the official networks' numbers."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from t2t_vit.models.checkpoint_formats import Checkpoint

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


SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 5, "img_size": 64}


@pytest.fixture(scope="session")
def small():
    """Arguments of a network of one narrow block."""
    return SMALL


@pytest.fixture(scope="session")
def make():
    """Makes a network whose every tensor, positions apart, is random: equal seeds make equal ones."""

    def make_network(name="t2t_vit_7", seed=0, *, small=True, **kwargs):
        arguments = SMALL if small else {"num_classes": 5, "img_size": 64}
        network = timm.create_model(name, **{**arguments, **kwargs}).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, tensor in network.state_dict().items():
                if key != "pos_embed":
                    tensor.normal_(std=0.2, generator=generator)
        return network

    return make_network


@pytest.fixture(scope="session")
def logits():
    """The answers of a network to the random images of a shape."""

    def answer(model, *shape):
        with torch.no_grad():
            return model(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))

    return answer


@pytest.fixture(scope="session")
def of_shapes():
    """A checkpoint with the shapes of a network, a single number in memory for each tensor."""

    def checkpoint(name):
        with torch.device("meta"):
            shapes = {key: tensor.shape for key, tensor in timm.create_model(name).state_dict().items()}
        state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
        return Checkpoint("weights.pth", "bare state dict", state)

    return checkpoint


@pytest.fixture(scope="session")
def write():
    """Writes a network's weights in a format, as a t2t_vit_7's where the format says the name."""

    def write_file(kind, model, path):
        state = dict(model.state_dict())
        wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
        if kind == "safetensors":
            save_file(state, path)
        elif kind.startswith("hub"):
            save_for_hf(model, path, safe_serialization=True)
            if kind == "hub for transformers":  # it takes the class count from the top of config.json alone
                config = json.loads((path / "config.json").read_text())
                del config["model_args"]["num_classes"]
                (path / "config.json").write_text(json.dumps(config))
        else:
            noise = {key: torch.randn_like(tensor) for key, tensor in wrapped.items()}
            ours = {"format": "t2t_vit", "version": 1, "model": "t2t_vit_7", "model_args": SMALL}
            contents = {
                "official": {"arch": "T2t_vit_7", "state_dict": noise, "state_dict_ema": wrapped},
                "cifar": {"net": wrapped, "acc": 98.0},
                "ours": {**ours, "state_dict": state},
                "bare": state,
            }
            torch.save(contents[kind], path)
        return path

    return write_file
