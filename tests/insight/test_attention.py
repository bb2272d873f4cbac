"""What is captured is what was computed: the network's output follows from it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import timm
import torch
from torch import Tensor, nn

import t2t_vit
from t2t_vit.errors import UserError
from t2t_vit.insight import attention
from t2t_vit.insight.attention import attention_layers, capture_attention, record_attention
from t2t_vit.models.attention import SoftmaxAttention
from t2t_vit.models.mixers import PerformerMixer

KINDS = {  # every kind of tokens and of blocks
    "performer": "t2t_vit_7",
    "transformer": "t2t_vit_t_14",
    "convolution": "t2t_vit_14_conv",
    "patch": "t2t_vit_7_no_t2t",
    "se": "t2t_vit_14_se",
    "ghost": "t2t_vit_16_ghost",
    "dense": "t2t_vit_dense",
    "resnext": "t2t_vit_14_resnext",
    "local": "t2t_vit_7_local",
}
SIZE = (48, 80)  # 3 x 5 tokens


def _network(name: str, size: tuple[int, int] = SIZE) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, img_size=size, num_classes=5).eval()


def _images(size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@contextmanager
def _attending_by(model: nn.Module, maps: dict[str, Tensor]) -> Iterator[None]:
    """Replaces attention by captured weights: nothing of queries and keys is left."""

    def by_weights(module: nn.Module, weights: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def attend(_q: Tensor, _k: Tensor, v: Tensor) -> Tensor:
            B, N, C = v.shape
            heads = v.float().reshape(B, N, weights.shape[1], -1).transpose(1, 2)
            mixed = (weights @ heads).transpose(1, 2).reshape(B, N, C).to(v.dtype)
            return module.proj(mixed) if isinstance(module, PerformerMixer) else mixed

        return attend

    modules = dict(model.named_modules())
    changed = [modules.get(f"{name}.attn", modules[name]) for name in maps]
    for module, weights in zip(changed, maps.values(), strict=True):
        assert isinstance(module, SoftmaxAttention | PerformerMixer)
        module.attend = by_weights(module, weights)
    try:
        yield
    finally:
        for module in changed:
            del module.attend


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
@torch.inference_mode()
def test_the_output_follows_from_captured_weights(name: str):
    model, images = _network(name), _images()
    plain = model(images)
    with capture_attention(model) as maps:
        output = model(images)
    torch.testing.assert_close(output, plain, rtol=0, atol=0)  # capturing changes nothing
    torch.testing.assert_close(model(images), plain, rtol=0, atol=0)  # and leaves nothing behind
    with _attending_by(model, maps):
        torch.testing.assert_close(model(images), plain, rtol=1e-4, atol=1e-5)
        wrong = {key: value.flip(-1) for key, value in maps.items()}
    with _attending_by(model, wrong), pytest.raises(AssertionError):
        torch.testing.assert_close(model(images), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
@torch.inference_mode()
def test_it_captures_under_autocast(name: str):
    model, images = _network(name), _images()
    for parameter in model.parameters():  # or all weights would be nearly equal
        torch.nn.init.normal_(parameter, std=0.1)
    with capture_attention(model) as exact:
        model(images)
    with torch.autocast("cpu", torch.bfloat16), capture_attention(model) as maps:
        model(images)
    assert {weights.dtype for weights in maps.values()} == {torch.float32}
    for layer, weights in maps.items():
        difference = (weights - exact[layer]).abs().mean()
        assert difference < 0.1 * (exact[layer].flip(-1) - exact[layer]).abs().mean(), layer


@torch.inference_mode()
def test_names_shapes_and_sums():
    model = _network("t2t_vit_7")
    names = ["tokens_to_token.attention1", "tokens_to_token.attention2", *(f"blocks.{i}.attn" for i in range(7))]
    assert attention_layers(model) == names
    with t2t_vit.capture_attention(model) as maps:
        model(_images())
    assert list(maps) == names
    assert maps["tokens_to_token.attention1"].shape == (2, 1, 12 * 20, 12 * 20)
    assert maps["tokens_to_token.attention2"].shape == (2, 1, 6 * 10, 6 * 10)
    assert maps["blocks.3.attn"].shape == (2, 4, 16, 16)
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_chosen_queries_are_rows_of_all(name: str):
    model, images = _network(name), _images()
    with capture_attention(model) as whole:
        model(images)
    with capture_attention(model, queries=["class", (34, 18)]) as chosen:
        model(images)
    # The centres of tokens are the pixels 1, 17, 33 ... of T2T, and 7.5, 23.5 ... of hard patches.
    place = 1 + 1 * 5 + 2
    torch.testing.assert_close(chosen["blocks.2.attn"], whole["blocks.2.attn"][:, :, [0, place]])
    if "t2t" in name:
        stage = whole["tokens_to_token.attention1"][:, :, [4 * 20 + 8]]  # centres 1, 5, 9 ...
        torch.testing.assert_close(chosen["tokens_to_token.attention1"], stage)
    with capture_attention(model, queries=["class"]) as of_class:
        model(images)
    assert list(of_class) == [f"blocks.{i}.attn" for i in range(len(model.blocks))]


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_products_with_a_vector_are_those_of_the_matrix(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "QUERIES_AT_A_TIME", 7)
    model, images = _network(name), _images()
    with capture_attention(model) as maps, record_attention(model) as recorded:
        model(images)
    assert list(recorded) == list(maps)
    for layer, weights in maps.items():
        relevance = torch.rand(2, weights.shape[-1])
        expected = torch.einsum("bq,bhqk->bk", relevance, weights) / weights.shape[1]
        torch.testing.assert_close(recorded[layer].pull(relevance), expected)


@torch.inference_mode()
def test_one_row_of_a_large_image_costs_no_matrix():
    model = _network("t2t_vit_7", (512, 512))
    with (
        pytest.raises(
            UserError, match=r"16,384 queries to 16,384 tokens, 3 images, 1 heads, would take 3\.0 GiB: choose"
        ),
        capture_attention(model),
    ):
        model(_images((512, 512))[[0, 0, 1]])
    with capture_attention(model, queries=[(100, 100)]) as maps:
        model(_images((512, 512))[:1])
    assert maps["tokens_to_token.attention1"].shape == (1, 1, 1, 16384)


def test_a_later_forward_replaces_the_maps():
    model = timm.create_model("t2t_vit_7", img_size=64, dynamic_img_size=True).eval()
    with torch.inference_mode(), capture_attention(model, queries=["class"]) as maps:
        model(_images((64, 64)))
        model(_images((32, 64)))
    assert maps["blocks.0.attn"].shape == (2, 4, 1, 1 + 2 * 4)


def test_what_cannot_be_captured_is_told():
    with (
        pytest.raises(UserError, match=r"^ResNet has no attention that can be captured: a network of this package has"),
        capture_attention(timm.create_model("resnet18")),
    ):
        pass
    model = _network("t2t_vit_7")
    with (
        pytest.raises(
            UserError, match=r"^The pixel 80,3 lies outside the image, which has 80 x 48 pixels: x is from 0 to 79"
        ),
        capture_attention(model, queries=[(80, 3)]),
    ):
        model(_images())
    assert model(_images()).shape == (2, 5)  # and everything is as it was
    assert not any("attend" in vars(module) for module in model.modules())


@torch.inference_mode()
def test_images_may_be_named():
    model = _network("t2t_vit_7")
    with capture_attention(model, queries=["class"]) as maps:
        model(x=_images())
    assert len(maps) == 7


@torch.inference_mode()
def test_a_register_is_no_class_token():
    model = timm.create_model("vit_wee_patch16_reg1_gap_256", img_size=48, num_classes=5).eval()
    with capture_attention(model, queries=["class", (1, 1)]) as maps:
        model(_images((48, 48)))
    assert maps["blocks.0.attn"].shape[2] == 1


def test_windows_are_no_rows_of_the_image():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 1, 1)).eval()
    told = r"^layers\.0\.blocks\.0\.attn of SwinTransformer attends within windows"
    with torch.inference_mode(), pytest.raises(UserError, match=told), capture_attention(model, queries=[(3, 3)]):
        model(torch.randn(1, 3, 56, 56))
