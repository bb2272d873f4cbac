"""Relevance maps, held to what they are defined as."""

import builtins
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_vit.errors import UserError
from t2t_vit.insight.attention import capture_attention
from t2t_vit.insight.geometry import Grid
from t2t_vit.insight.relevance import (
    METHODS,
    gradcam,
    integrated_gradients,
    legrad,
    occlusion,
    random_map,
    rollout,
    rollout_to_pixels,
)

SIZE = (32, 48)


def _network(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, img_size=SIZE, **arguments).eval()
    for parameter in model.parameters():  # or hardly anything would depend on anything
        nn.init.normal_(parameter, std=0.1)
    return model


IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([3, 1])


def _product(maps: dict[str, Tensor], num_tokens: int) -> Tensor:
    """The product of (A + I) / 2 over the backbone's layers, A averaged over the heads: (B, N, N)."""
    product = torch.eye(num_tokens).expand(2, num_tokens, num_tokens)
    for layer, weights in maps.items():
        if layer.startswith("blocks"):
            product = (weights.mean(dim=1) + torch.eye(num_tokens)) / 2 @ product
    return product


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_dense", "vit_tiny_patch16_224"])
def test_rollout_is_a_product_of_matrices(name: str):
    model = _network(name)
    with torch.no_grad(), capture_attention(model) as maps:
        model(IMAGES)
    product = _product(maps, 7)
    grid = Grid.spread((2, 3), SIZE) if "patch16" in name else Grid.after(((7, 4, 2), (3, 2, 1), (3, 2, 1)), SIZE)
    torch.testing.assert_close(rollout(model, IMAGES, LABELS), grid.to_pixels(product[:, 0, 1:]))


def test_rollout_of_averaged_tokens_begins_with_all():
    model = _network("t2t_vit_7", global_pool="avg")
    with torch.no_grad(), capture_attention(model) as maps:
        model(IMAGES)
    product = _product(maps, 7)
    expected = Grid.after(((7, 4, 2), (3, 2, 1), (3, 2, 1)), SIZE).to_pixels(product[:, 1:, 1:].mean(dim=1))
    torch.testing.assert_close(rollout(model, IMAGES, LABELS), expected)


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_rollout_to_pixels_is_the_product_with_all_matrices(name: str):
    model = _network(name)
    with torch.no_grad(), capture_attention(model) as maps:
        model(IMAGES)
    product = _product(maps, 7)
    relevance = product[:, 0, 1:]
    sizes = [SIZE, (8, 12), (4, 6)]
    for number in (2, 1, 0):
        split, size = model.tokens_to_token.splits[number], sizes[number]
        # Which pixels are in which patch, from the indices of an unfolded map.
        indices = torch.arange(1.0, 1 + size[0] * size[1]).reshape(1, 1, *size)
        patches = F.unfold(indices, split[0], padding=split[2], stride=split[1])[
            0
        ].long()  # (kernel^2, N); 0 is padding
        is_in = torch.zeros(1 + size[0] * size[1], patches.shape[1]).scatter_(0, patches, 1.0)[1:]
        below = relevance @ (is_in / is_in.sum(dim=1, keepdim=True)).t()
        below = below * relevance.sum(dim=1, keepdim=True) / below.sum(dim=1, keepdim=True)
        if number:
            weights = maps[f"tokens_to_token.attention{number}"][:, 0]
            below = (below + torch.einsum("bq,bqk->bk", below, weights)) / 2
        relevance = below
    torch.testing.assert_close(rollout_to_pixels(model, IMAGES, LABELS), relevance.reshape(2, *SIZE))


@pytest.mark.parametrize(
    "arguments", [{}, {"global_pool": "avg"}, {"block": "local"}], ids=["class token", "average", "local"]
)
def test_legrad_is_the_gradient_of_each_layers_score(arguments: dict[str, str]):
    model = _network("t2t_vit_7", **arguments)
    with torch.no_grad(), capture_attention(model) as maps:
        model(IMAGES)
    inputs: list[Any] = []
    handles = [block.register_forward_pre_hook(lambda _, given: inputs.append(given)) for block in model.blocks]
    with torch.no_grad():
        model(IMAGES)
    for handle in handles:
        handle.remove()
    total = torch.zeros(2, 7)
    for i, block in enumerate(model.blocks):
        weights = maps[f"blocks.{i}.attn"].clone().requires_grad_()

        def by_weights(_q: Tensor, _k: Tensor, v: Tensor, weights: Tensor = weights) -> Tensor:
            heads = v.unflatten(2, (4, -1)).transpose(1, 2)
            return (weights @ heads).transpose(1, 2).flatten(2)

        block.attn.attend = by_weights
        score = model.forward_head(model.norm(block(*inputs[i])))[torch.arange(2), LABELS].sum()
        (gradient,) = torch.autograd.grad(score, weights)
        del block.attn.attend
        total += gradient.relu().mean(dim=(1, 2))
    expected = Grid.after(model.tokens_to_token.splits, SIZE).to_pixels(total[:, 1:])
    torch.testing.assert_close(legrad(model, IMAGES, LABELS), expected)
    assert (legrad(model, IMAGES, LABELS) != legrad(model, IMAGES, LABELS + 1)).any()


def test_gradcam_of_a_cnn_weights_maps_by_the_classifier():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5).eval()
    with torch.no_grad():
        maps = model.forward_features(IMAGES)  # (2, 512, 1, 2)
    weights = model.fc.weight[LABELS] / maps[0, 0].numel()
    expected = torch.einsum("bc,bchw->bhw", weights, maps).relu().detach()
    found = gradcam(model, IMAGES, LABELS)
    torch.testing.assert_close(found, Grid.spread((1, 2), SIZE).to_pixels(expected.flatten(1)))


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_dense"])
def test_gradcam_of_a_transformer_looks_before_the_last_attention(name: str):
    model = _network(name)
    last, entered = model.blocks[-1], []
    handle = last.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        model(IMAGES)
    handle.remove()
    tokens = last.norm1(entered[0]).detach().requires_grad_()
    norm1, last.norm1 = last.norm1, nn.Identity()
    last.norm1.forward = lambda _: tokens
    model.forward_head(model.norm(last(entered[0])))[torch.arange(2), LABELS].sum().backward()
    last.norm1 = norm1
    model.zero_grad()
    weights = tokens.grad[:, 1:].mean(dim=1, keepdim=True)
    expected = (weights * tokens[:, 1:]).sum(dim=2).relu().detach()
    grid = Grid.after(model.tokens_to_token.splits, SIZE)
    torch.testing.assert_close(gradcam(model, IMAGES, LABELS), grid.to_pixels(expected))
    assert expected.max() > 0


class _Linear(nn.Module):
    """Class scores that are weighted sums of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x, self.weight)


def test_integrated_gradients_of_a_linear_network():
    model = _Linear()
    expected = (model.weight[LABELS] * IMAGES).sum(dim=1).relu().detach()
    torch.testing.assert_close(integrated_gradients(model, IMAGES, LABELS), expected, rtol=1e-4, atol=1e-4)


def test_occlusion_finds_the_pixels_that_count():
    model = _Linear()
    with torch.no_grad():
        model.weight.zero_()
        model.weight[:, :, 8:16, 24:32] = 1
    images = torch.ones(1, 3, *SIZE)
    found = occlusion(model, images, LABELS[:1])[0]
    assert found.shape == SIZE
    assert found[8:16, 24:32].mean() > 4 * found.mean()
    assert found[:4, :16].max() == 0


def test_methods_without_captum_name_the_command(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def no_captum(name: str, *arguments: Any) -> Any:
        if name.startswith("captum"):
            raise ImportError
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", no_captum)
    with pytest.raises(UserError, match=r"need captum, which is not installed: pip install 't2t-vit\[explain\]'\.$"):
        occlusion(_Linear(), IMAGES, LABELS)


@pytest.mark.parametrize("method", ["rollout", "rollout-pixels", "legrad", "gradcam"])
def test_methods_run_in_inference_mode_in_double_precision_and_under_autocast(method: str):
    model = _network("t2t_vit_7")
    expected = METHODS[method].run(model, IMAGES, LABELS)
    with torch.inference_mode():
        torch.testing.assert_close(METHODS[method].run(model, IMAGES.clone(), LABELS.clone()), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert METHODS[method].run(model, IMAGES, LABELS).dtype == torch.float32
    double = METHODS[method].run(model.double(), IMAGES.double(), LABELS)
    torch.testing.assert_close(double.float(), expected, rtol=1e-2, atol=1e-4)


def test_rollout_of_a_distilled_network_begins_with_both_its_tokens():
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=SIZE).eval()
    with torch.no_grad(), capture_attention(model) as maps:
        model(IMAGES)
    product = _product(maps, 8)
    expected = Grid.spread((2, 3), SIZE).to_pixels(product[:, :2, 2:].mean(dim=1))
    torch.testing.assert_close(rollout(model, IMAGES, LABELS), expected)


def test_the_settings_name_the_methods():
    from t2t_vit.insight.config import VisualizeConfig
    from t2t_vit.options import options_of

    assert set(options_of(VisualizeConfig)["methods"].choices) == set(METHODS)


def test_methods_leave_the_network_as_it_was():
    model = _network("t2t_vit_7")
    plain = model(IMAGES)
    for method in METHODS.values():
        found = method.run(model, IMAGES, LABELS)
        assert found.shape == (2, *SIZE)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert float(found.min()) >= 0
    assert torch.equal(model(IMAGES), plain)
    assert not any("attend" in vars(module) or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_does_not_fit_a_network_is_told():
    resnet = timm.create_model("resnet18", num_classes=5).eval()
    for method, told in (
        (rollout, "ResNet has no attention that can be captured"),
        (rollout_to_pixels, "ResNet has no soft splits: rollout ends at its patches"),
        (legrad, "ResNet has no blocks with attention, from whose outputs the head could read"),
    ):
        with pytest.raises(UserError, match=told):
            method(resnet, IMAGES, LABELS)
    with pytest.raises(
        UserError, match="The blocks of this network differ in width: its head can read from the last one"
    ):
        legrad(_network("t2t_vit_dense"), IMAGES, LABELS)


def test_the_random_map_of_an_image_is_always_the_same_and_another_than_that_of_other_images():
    first, second = random_map(nn.Identity(), IMAGES, LABELS)
    assert torch.equal(random_map(_Linear(), IMAGES[1:], LABELS[1:])[0], second)
    assert not torch.equal(first, second)
