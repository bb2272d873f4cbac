import math

import pytest
import torch
from torch import nn

from t2t_vit.models.mixers import PerformerMixer, TransformerMixer, performer_attention


def reference_performer(q, k, v, w, eps=1e-8):
    """The definition, unstabilised: exact in float64 as long as no exponential over- or underflows."""
    q, k, v, w = (tensor.double() for tensor in (q, k, v, w))
    m = w.shape[0]
    phi_q = torch.exp(q @ w.T - q.square().sum(-1, keepdim=True) / 2) / math.sqrt(m)
    phi_k = torch.exp(k @ w.T - k.square().sum(-1, keepdim=True) / 2) / math.sqrt(m)
    weights = phi_q @ phi_k.transpose(1, 2)
    return weights @ v / (weights.sum(-1, keepdim=True) + eps)


def attend(q, k, v, w):
    """Performer attention alone, without the linear layer behind it."""
    identity = torch.eye(v.shape[-1], dtype=v.dtype)
    return performer_attention(q, k, v, w, identity, torch.zeros(v.shape[-1], dtype=v.dtype))


def random_qkvw(magnitude, *, tokens=50, dim=64, features=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, tokens, dim, generator=generator) * magnitude
    w = nn.init.orthogonal_(torch.empty(features, dim), generator=generator) * math.sqrt(features)
    return q, k, v, w


@pytest.mark.parametrize("magnitude", [1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0])
def test_performer_attention_is_the_definition(magnitude):
    q, k, v, w = random_qkvw(magnitude)
    expected = reference_performer(q, k, v, w)
    result = attend(q, k, v, w)
    # At 2.0 the denominator is e^-128 and eps leaves nothing of the values: both are zero beside v.
    assert (result - expected).norm() <= 2e-5 * expected.norm() + 1e-10 * v.norm()


def test_eps_keeps_its_meaning_where_the_denominator_is_small():
    # At this magnitude the unstabilised denominator is near 1e-8 and eps halves outputs: as the official code does.
    q, k, v, w = random_qkvw(0.45, seed=1)
    k = k * 8 / k.norm(dim=-1, keepdim=True)
    with_eps, without = reference_performer(q, k, v, w), reference_performer(q, k, v, w, eps=0.0)
    assert (with_eps - without).norm() > 0.01 * without.norm(), "the case must be one where eps matters"
    assert (attend(q, k, v, w) - with_eps).norm() <= 1e-4 * with_eps.norm()


def test_performer_attention_survives_gradcheck():
    q, k, v, w = (tensor.double() for tensor in random_qkvw(0.7, tokens=4, dim=6, features=3))
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, w), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e-6, 1e-3, 1.0, 10.0, 1e2, 1e3])
@pytest.mark.parametrize("w_scale", [1.0, 8.0])
def test_half_precision_is_finite_and_agrees_with_float32(dtype, magnitude, w_scale):
    q, k, v, w = random_qkvw(magnitude)
    w = w * w_scale
    upstream = torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
    # float32 sees the rounded values: only what is computed from them may differ
    q, k, v, upstream = (tensor.to(dtype) for tensor in (q, k, v, upstream))
    results = {}
    for kind in ("half", "float32"):
        inputs = [(t if kind == "half" else t.float()).detach().requires_grad_() for t in (q, k, v)]
        with torch.autocast("cpu", dtype, enabled=kind == "half"):
            result = attend(*inputs, w)
        result.backward(upstream.to(result.dtype))
        results[kind] = [result, *(tensor.grad for tensor in inputs)]
    for half, exact in zip(results["half"], results["float32"], strict=True):
        assert torch.isfinite(half).all()
        assert torch.isfinite(exact).all()
        scale = exact.abs().max()
        tiny = torch.finfo(dtype).smallest_normal
        assert (half.float() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * scale + tiny


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("mixer_class", [PerformerMixer, TransformerMixer])
def test_a_mixer_under_autocast_is_finite_and_near_float32(mixer_class, dtype, magnitude):
    torch.manual_seed(0)
    mixer = mixer_class(3, 16, (3, 2, 1), of_pixels=True).eval()
    x = torch.randn(2, 3, 13, 11) * magnitude
    results = {}
    for kind in ("half", "float32"):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=kind == "half"):
            result = mixer(inputs)
        mixer.zero_grad()
        result.float().square().mean().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in mixer.parameters()])
        results[kind] = [result.float(), gradients]
    for half, exact in zip(results["half"], results["float32"], strict=True):
        assert torch.isfinite(half).all()
        assert (half - exact).norm() <= 20 * torch.finfo(dtype).eps * exact.norm()


def test_weights_that_overflow_half_precision_do_no_harm():
    torch.manual_seed(0)
    mixer = PerformerMixer(3, 16, (3, 2, 1)).eval()
    with torch.no_grad():
        mixer.kqv.weight.mul_(300)  # features of magnitude 1e3: exp(-|x|^2 / 2) is zero in any precision
    x = torch.randn(2, 3, 13, 11, requires_grad=True)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            result = mixer(x)
        result.float().mean().backward()
        assert torch.isfinite(result).all()
        assert torch.isfinite(x.grad).all()


def test_scripting_keeps_performer_attention_in_high_precision():
    q, k, v, w = random_qkvw(1.0)
    with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):
        scripted = torch.jit.script(performer_attention)
    with torch.autocast("cpu", torch.bfloat16):
        result = scripted(q, k, v, w, torch.eye(64), torch.zeros(64))
    torch.testing.assert_close(result, attend(q, k, v, w), rtol=1e-4, atol=1e-5)


def test_the_linear_layer_behind_performer_attention_is_part_of_it():
    q, k, v, w = random_qkvw(0.5)
    linear = nn.Linear(64, 48)
    result = performer_attention(q, k, v, w, linear.weight, linear.bias)
    torch.testing.assert_close(result, linear(attend(q, k, v, w)), rtol=1e-4, atol=1e-5)


def test_random_features_are_orthogonal_rows_of_norm_sqrt_m():
    w = PerformerMixer(3, 64, (3, 2, 1)).w
    assert w.shape == (32, 64)
    torch.testing.assert_close(w @ w.T, 32 * torch.eye(32), rtol=0, atol=1e-4)
    assert "w" in PerformerMixer(3, 64, (3, 2, 1)).state_dict()


def test_softmax_mixer_scales_by_the_input_width():
    assert TransformerMixer(3, 64, (7, 4, 2)).attn.scale == 147**-0.5


def test_dropout_is_the_official_code_s():
    assert [m.p for m in PerformerMixer(3, 16, (3, 2, 1)).modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]
    assert {m.p for m in TransformerMixer(3, 16, (3, 2, 1)).modules() if isinstance(m, nn.Dropout)} == {0.0}


@pytest.mark.parametrize("mixer_class", [PerformerMixer, TransformerMixer])
def test_a_mixer_can_be_scripted(mixer_class):
    mixer = mixer_class(3, 16, (3, 2, 1), of_pixels=True).eval()
    x = torch.randn(2, 3, 13, 11)
    with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):
        scripted = torch.jit.script(mixer)
    torch.testing.assert_close(scripted(x), mixer(x))
