"""Receptive fields, measured by random vectors, and by the whole Jacobian."""

import pytest
import timm
import torch

from t2t_vit.errors import UserError
from t2t_vit.insight import receptive
from t2t_vit.insight.receptive import receptive_fields

SIZE = (32, 48)


def _network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, img_size=SIZE).eval()


@pytest.mark.parametrize(("name", "stages"), [("t2t_vit_14_conv", 3), ("t2t_vit_7_no_t2t", 1)])
def test_convolutions_see_their_patch_and_nothing_else(name: str, stages: int):
    fields = receptive_fields(_network(name), torch.randn(1, 3, *SIZE), (20, 10))
    assert len(fields) == stages
    for field in fields:
        assert field.energy.shape == SIZE
        assert field.share_in_patch == pytest.approx(1)
        assert field.share_of_area < 0.7


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14"])
def test_the_estimate_is_that_of_the_whole_jacobian(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(receptive, "NUM_PROBES", 200)
    model, image = _network(name), torch.randn(1, 3, *SIZE)
    *_, field = receptive_fields(model, image, (20, 10))
    assert field.name == "tokens_to_token.project"
    jacobian = torch.autograd.functional.jacobian(lambda x: model.tokens_to_token(x)[0, field.token], image)
    energy = jacobian.square().sum(dim=(0, 1, 2))
    energy = energy / energy.sum()
    # 200 vectors of signs: the relative deviation of a pixel is about 10 %
    torch.testing.assert_close(field.energy, energy, rtol=0.5, atol=1e-6)
    left, top, right, bottom = field.patch
    assert field.share_in_patch == pytest.approx(float(energy[top:bottom, left:right].sum()), abs=0.02)
    assert 0 < field.energy[0, -1] < field.energy.max()  # it has seen the far corner


def test_the_same_call_gives_the_same_field():
    model, image = _network("t2t_vit_7"), torch.randn(1, 3, *SIZE)
    first, second = (receptive_fields(model, image, (20, 10))[1].energy for _ in range(2))
    assert torch.equal(first, second)


def test_a_pixel_outside_is_told():
    with pytest.raises(UserError, match=r"^The pixel 48,10 lies outside the image, which has 48 x 32 pixels"):
        receptive_fields(_network("t2t_vit_7"), torch.randn(1, 3, *SIZE), (48, 10))
