"""Our networks against the numbers of the official ones: tests/golden/README.md says how these were made."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from t2t_vit.models.factory import load_model
from t2t_vit.models.names import VARIANTS

GOLDEN = Path(__file__).parent.parent / "golden"
OFFICIAL_KEYS = json.loads((GOLDEN / "official_keys.json").read_text())
OFFICIAL = json.loads((GOLDEN / "official.json").read_text())

PUBLISHED_PARAMETERS = {
    "t2t_vit_7": 4_310_222, "t2t_vit_10": 5_889_230, "t2t_vit_12": 6_941_902, "t2t_vit_14": 21_545_550,
    "t2t_vit_19": 39_177_422, "t2t_vit_24": 64_105_934, "t2t_vit_t_14": 21_541_070, "t2t_vit_t_19": 39_172_942,
    "t2t_vit_t_24": 64_101_454, "t2t_vit_14_resnext": 21_545_550, "t2t_vit_14_wide": 25_156_302,
    "t2t_vit_14_se": 21_803_598, "t2t_vit_16_ghost": 16_253_262, "t2t_vit_dense": 23_647_062,
}  # fmt: skip
QUICK_CASES = {"t2t_vit_7@224/1000", "t2t_vit_t_14@224/1000"}


def expand(patterns):
    """key -> shape, from patterns whose blocks are written once."""
    shapes = {}
    for pattern, entry in patterns.items():
        if isinstance(entry, list):
            shapes[pattern] = entry
        elif "shape" in entry:
            shapes |= {pattern.replace("*", str(i)): entry["shape"] for i in range(entry["blocks"])}
        else:
            shapes |= {pattern.replace("*", i): shape for i, shape in entry.items()}
    return shapes


@pytest.mark.parametrize("name", OFFICIAL_KEYS)
def test_state_dict_has_the_official_keys_and_shapes(name):
    model = timm.create_model(name, device="meta")
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expand(OFFICIAL_KEYS[name])
    assert sum(value.numel() for value in model.state_dict().values()) == PUBLISHED_PARAMETERS[name]


def test_every_model_of_the_paper_is_there():
    assert set(PUBLISHED_PARAMETERS) | {"t2t_vit_14_conv", "t2t_vit_7_no_t2t", "t2t_vit_14_no_t2t"} <= set(VARIANTS)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in QUICK_CASES else pytest.mark.slow) for case in OFFICIAL],
)
def test_outputs_tokens_and_gradients_are_the_official_ones(case, fill, golden_images):
    name, size, num_classes = re.fullmatch(r"(\w+)@(\d+)/(\d+)", case).groups()
    expected = OFFICIAL[case]
    model = fill(timm.create_model(name, img_size=int(size), num_classes=int(num_classes))).eval()
    images = golden_images(int(size))

    tokens = model.tokens_to_token(images)
    assert tokens.mean().item() == pytest.approx(expected["tokens_mean"], abs=1e-6)
    assert tokens.std().item() == pytest.approx(expected["tokens_std"], rel=1e-5)
    torch.testing.assert_close(tokens[0, 0, :8], torch.tensor(expected["tokens_first8"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens[1, -1, -8:], torch.tensor(expected["tokens_last8"]), rtol=1e-5, atol=1e-5)

    logits = model(images)
    scale = logits.abs().max().item()
    first16 = torch.tensor(expected["logits_first16"])
    torch.testing.assert_close(logits[:, : first16.shape[1]], first16, rtol=0, atol=1e-5 * scale)
    assert logits.norm().item() == pytest.approx(expected["logits_norm"], rel=1e-5)

    loss = F.cross_entropy(logits, torch.tensor([1, 3]))
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    norms = {key: parameters[key].grad.norm().item() for key in expected["grad_norms"]}
    assert norms == pytest.approx(expected["grad_norms"], rel=1e-4)


@pytest.mark.slow
def test_an_mmpretrain_file_gives_the_official_numbers(tmp_path, golden, fill, golden_images):
    """The official weights under mmpretrain's names. (Its own code, since version 1, divides by the attention's scale
    where it should multiply, so that its outputs for random weights are no reference.)"""
    expected = OFFICIAL["t2t_vit_t_14@224/1000"]
    ours = fill(timm.create_model("t2t_vit_t_14")).state_dict()
    table = golden("mmpretrain_keys.json")["t2t_vit_t_14"]
    shapes = table["others"] | {
        f"backbone.encoder.{i}.{key}": shape for i in range(table["depth"]) for key, shape in table["block"].items()
    }
    renamed = {key: ours[official_name(key)] for key in shapes}
    assert {key: list(value.shape) for key, value in renamed.items()} == shapes
    torch.save({"state_dict": renamed, "meta": {}}, tmp_path / "mmpretrain.pth")

    model, checkpoint = load_model(tmp_path / "mmpretrain.pth", model="t2t_vit_t_14")
    assert checkpoint.kind == "mmpretrain checkpoint"
    with torch.no_grad():
        logits = model.eval()(golden_images(224))
    torch.testing.assert_close(logits[:, :16], torch.tensor(expected["logits_first16"]), rtol=0, atol=3e-5)


def official_name(key):
    """mmpretrain's name of a tensor in the official network's words."""
    if key.startswith("head."):
        return key.removeprefix("head.layers.")
    key = key.removeprefix("backbone.").replace("encoder.", "blocks.")
    for theirs, official in (
        (".ln1.", ".norm1."),
        (".ln2.", ".norm2."),
        ("ffn.layers.0.0", "mlp.fc1"),
        ("ffn.layers.1", "mlp.fc2"),
    ):
        key = key.replace(theirs, official)
    return key
