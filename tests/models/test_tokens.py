import pytest
import torch

from t2t_vit.errors import UserError
from t2t_vit.models import mixers
from t2t_vit.models.splits import PAPER_SPLITS, grid_size, norm_linear_over_patches
from t2t_vit.models.tokens import TokensToToken, build_tokens


@pytest.mark.parametrize("kind", ["performer", "transformer", "convolution", "patch"])
@pytest.mark.parametrize("size", [(64, 96), (48, 112), (50, 50), (65, 33)])
def test_tokens_are_as_many_as_the_grid_says(kind, size):
    tokens = build_tokens(kind, 2, 24, token_dim=8, splits=PAPER_SPLITS, token_drop_rate=None)
    height, width = grid_size(size, tokens.splits)
    assert tokens(torch.randn(1, 2, *size)).shape == (1, height * width, 24)


@pytest.mark.parametrize("tokens", ["performer", "transformer"])
def test_rows_and_columns_are_not_mixed_up(tokens):
    """A transposed image gives transposed tokens, once the splits' weights are transposed too."""
    torch.manual_seed(0)
    module = TokensToToken(1, 8, tokens=tokens, token_dim=4).eval()
    twin = TokensToToken(1, 8, tokens=tokens, token_dim=4).eval()
    state = module.state_dict()
    for key, value in state.items():
        if value.shape and value.shape[-1] in (49, 36):  # over an unfolded patch: (channels, kernel, kernel)
            kernel = 7 if value.shape[-1] == 49 else 3
            state[key] = value.unflatten(-1, (-1, kernel, kernel)).transpose(-1, -2).flatten(-3)
    twin.load_state_dict(state)
    x = torch.randn(1, 1, 48, 96)
    straight = module(x).reshape(1, 3, 6, 8)
    turned = twin(x.transpose(2, 3)).reshape(1, 6, 3, 8)
    torch.testing.assert_close(turned.transpose(1, 2), straight, rtol=1e-4, atol=1e-5)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"Unknown kind of token transformer 'performers'. Did you mean performer"):
        TokensToToken(tokens="performers")
    with pytest.raises(UserError, match=r"Unknown kind of tokens 'patches'. Did you mean patch"):
        build_tokens("patches", 3, 8, token_dim=4, splits=PAPER_SPLITS, token_drop_rate=None)
    with pytest.raises(UserError, match=r"three splits of .kernel, stride, padding."):
        TokensToToken(splits=((3, 2, 1),))
    with pytest.raises(UserError, match=r"token_drop_rate has no effect on 'patch' tokens"):
        build_tokens("patch", 3, 8, token_dim=4, splits=PAPER_SPLITS, token_drop_rate=0.1)


@pytest.mark.parametrize("kind", ["performer", "transformer"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_channels_stay_the_last_in_memory(kind, batch_size, monkeypatch):
    """Attention's fused kernel refuses others, and PyTorch then takes memory quadratic in the tokens."""
    found = []

    def projected(*args):
        found.append(norm_linear_over_patches(*args))
        return found[-1]

    monkeypatch.setattr(mixers, "norm_linear_over_patches", projected)
    TokensToToken(tokens=kind).eval()(torch.randn(batch_size, 3, 64, 64))
    assert [tokens.stride(-1) for tokens in found] == [1, 1]
