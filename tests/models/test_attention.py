import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import AttentionExtract

from t2t_vit.models import attention as module
from t2t_vit.models.attention import SoftmaxAttention, attention

SHAPE = (2, 3, 20, 8)  # (B, heads, N, D)


def random_qkv(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


@pytest.fixture
def in_parts(monkeypatch):
    """Of twenty tokens, seven are taken at a time."""
    monkeypatch.setattr(module, "QUERIES_AT_A_TIME", 7)


@pytest.fixture
def many_tokens(in_parts, monkeypatch):
    """And twenty are too many to keep the weights."""
    monkeypatch.setattr(module, "MAX_STORED_TOKENS", 19)


def result_and_gradients(attend, tensors):
    result = attend(*tensors)
    gradients = torch.autograd.grad(result, tensors, torch.ones_like(result).cumsum(dim=2))
    return [result, *gradients]


@pytest.mark.parametrize("how", [None, "in_parts", "many_tokens"])
def test_products_agree_with_the_fused_kernel(how, request):
    if how is not None:
        request.getfixturevalue(how)
    ours = result_and_gradients(lambda q, k, v: attention(q, k, v, scale=0.3), random_qkv())
    exact = [tensor.detach().float().requires_grad_() for tensor in random_qkv()]
    fused = result_and_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), exact)
    for our, their in zip(ours, fused, strict=True):
        assert our.dtype == torch.bfloat16
        assert (our.float() - their).norm() <= 0.01 * their.norm()


@pytest.mark.usefixtures("many_tokens")
def test_no_weights_of_many_tokens_are_stored():
    stored = []
    tensors = random_qkv()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: stored.append(tensor.shape) or tensor, lambda x: x):
        attention(*tensors, scale=0.3)
    assert not any(shape[-1] == SHAPE[2] for shape in stored)


@pytest.mark.usefixtures("many_tokens")
def test_weights_that_are_computed_again_drop_the_same_ones():
    q, k, v = random_qkv()
    result = attention(q, k, v, scale=0.3, drop=0.5)
    upstream = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(result.dtype)
    (gradient,) = torch.autograd.grad(result, v, upstream)
    # linear in v: upstream . (A v) = (A^T upstream) . v, whatever weights A were dropped
    forward, backward = ((a.float() * b.float()).sum() for a, b in ((upstream, result), (gradient, v)))
    torch.testing.assert_close(forward, backward, rtol=0.02, atol=0.5)


def test_autocast_chooses_the_type_as_for_the_fused_kernel(monkeypatch):
    fused = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **settings: fused.append(q.dtype) or v)
    for dtype in (torch.float32, torch.float64):
        q, k, v = random_qkv(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            attention(q, k, v, scale=0.3)
        attention(q, k, v, scale=0.3)
    assert fused == [torch.float32, torch.float64, torch.float64]


def test_fused_and_plain_attention_agree():
    layer = SoftmaxAttention(num_heads=4, scale=0.5)
    q, k, v = torch.randn(3, 2, 7, 16)
    fused = layer.attend(q, k, v)
    layer.fused_attn = False
    torch.testing.assert_close(layer.attend(q, k, v), fused)


@pytest.mark.parametrize("name", ["t2t_vit_t_14", "t2t_vit_14_se", "t2t_vit_16_ghost"])
def test_timm_extracts_the_attention_by_its_own_names(name):
    model = timm.create_model(name, depth=2, num_classes=3, img_size=32)
    attentions = {key: layer for key, layer in model.named_modules() if isinstance(layer, SoftmaxAttention)}
    images = torch.randn(2, 3, 32, 32)
    fused = model.eval()(images)
    for layer in attentions.values():
        layer.fused_attn = False
    traced = AttentionExtract(model, method="fx")(images)
    hooked = AttentionExtract(model, method="hook")(images)
    assert [*traced] == [f"{key}.softmax" for key in attentions]
    assert [*hooked] == [f"{key}.attn_drop" for key in attentions]
    assert {"blocks.0.attn.softmax", "blocks.1.attn.softmax"} <= traced.keys()
    assert ("tokens_to_token.attention1.attn.softmax" in traced) == (name == "t2t_vit_t_14")
    for weights, same in zip(traced.values(), hooked.values(), strict=True):
        assert torch.equal(weights, same)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert traced["blocks.1.attn.softmax"].shape == (2, 6, 5, 5)  # four tokens and the class token
    torch.testing.assert_close(model(images), fused)
