"""One update of the weights."""

import shutil

import numpy as np
import pytest
import timm.optim.muon
import torch

from t2t_vit.training.muon import float32_iterations
from t2t_vit.training.setup import setup
from t2t_vit.training.train import run_training


def test_the_loss_of_an_odd_last_image_that_cannot_be_mixed_is_no_loss_of_weight(tiny_config, picture_folder, tmp_path):
    """7 images are all there are: 6 are mixed, and their gradients are the mean over 6."""
    for label, count in (("lying", 4), ("upright", 3)):
        for part in ("train", "val"):
            (tmp_path / "few" / part / label).mkdir(parents=True)
            for i in range(count):
                shutil.copy(picture_folder / "train" / label / f"{i}.png", tmp_path / "few" / part / label)
    run = setup(tiny_config(data=str(tmp_path / "few"), mixup=0.8, grad_accum_steps=2))
    batch = next(iter(run.train_loader))
    parts = [(len(images), share) for images, _, share, _ in run.learner._parts(batch)]
    assert parts == [(3, 0.5), (3, 0.5)]


def test_gradients_are_clipped(tiny_config, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run_training(tiny_config(clip_grad=0.01, epochs=1, opt="adamw"))
    assert norms
    assert np.max(norms) <= 0.0101


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_scale_of_the_loss(tiny_config):
    run = setup(tiny_config(amp=True, amp_dtype="float16"))
    learner, batch = run.learner, next(iter(run.train_loader))
    torch.nn.init.constant_(run.model.head.bias, float("inf"))
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    scale = learner.scaler.get_scale()
    learner.prepare()
    assert not learner.learn(batch, 0).updated
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    assert learner.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("opt", ["muon", "adamuon"])
@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ({"amp": False}, torch.float32),
        ({"amp": True}, torch.bfloat16),
        ({"amp": True, "amp_dtype": "float16"}, torch.float32),
    ],
)
def test_muon_computes_in_bfloat16_only_where_the_network_does(opt, precision, expected, tiny_config, monkeypatch):
    """A CPU without instructions for bfloat16 took 13 s for a step that takes 0.9 s in float32."""
    iterate, types = timm.optim.muon.zeropower_via_newtonschulz, []

    def spy(*args, **kwargs):
        result = iterate(*args, **kwargs)
        types.append(result.dtype)
        return result

    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", spy)
    run_training(tiny_config(opt=opt, epochs=1, **precision))
    assert set(types) == {expected}
    assert timm.optim.muon.zeropower_via_newtonschulz is spy


def test_iterations_in_float32_end_with_their_block():
    before = timm.optim.muon.zeropower_via_newtonschulz
    with pytest.raises(KeyError), float32_iterations():
        raise KeyError
    assert timm.optim.muon.zeropower_via_newtonschulz is before
