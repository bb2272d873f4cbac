"""The measures of relevance maps: a right map beats a random one, a wrong one does not."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from t2t_vit.insight.faithfulness import (
    deletion,
    insertion,
    interval,
    measure_faithfulness,
    rank_correlations,
    saco,
    share_inside,
    with_random_weights,
)

SIDE = 32


class _OneQuarter(nn.Module):
    """Class 1 is likely where the upper right quarter is bright; nothing else matters."""

    def forward(self, x: Tensor) -> Tensor:
        score = x[:, :, : SIDE // 2, SIDE // 2 :].mean(dim=(1, 2, 3))
        return torch.stack([-4 * score, 4 * score], dim=1)


def _images() -> Tensor:
    noise = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) / 10
    noise[:, :, : SIDE // 2, SIDE // 2 :] += 1
    return noise


def _true_map(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    values = torch.zeros(len(images), SIDE, SIDE)
    values[:, : SIDE // 2, SIDE // 2 :] = 1 + torch.rand(
        SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1)
    )
    return values


def _wrong_map(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return 2 - _true_map(model, images, labels)


def test_a_right_map_beats_a_random_one_and_a_wrong_one_does_not():
    labels = torch.ones(4, dtype=torch.long)
    rows = measure_faithfulness(
        _OneQuarter(), _images(), labels, {"right": _true_map, "wrong": _wrong_map}, model_name="m"
    )
    right, wrong, random = rows
    assert [row.method for row in rows] == ["right", "wrong", "random"]
    assert right.deletion < random.deletion < wrong.deletion
    assert right.insertion > random.insertion > wrong.insertion
    assert right.saco > 0.9
    assert wrong.saco < 0
    assert (right.images, right.deletion_low, right.deletion_high) == (4, None, None)  # too few for an interval
    assert right.after_randomising == pytest.approx(1)  # this map does not look at the network
    assert random.after_randomising is None


def test_areas_run_from_one_image_to_the_other():
    class Share(nn.Module):
        """The probability is the share of pixels that are 1."""

        def forward(self, x: Tensor) -> Tensor:
            share = x.mean(dim=(1, 2, 3)).clamp(1e-6, 1 - 1e-6)
            return torch.stack([torch.zeros_like(share), torch.logit(share)], dim=1)

    images = torch.ones(1, 1, 20, 20)
    labels, relevance = torch.tensor([1]), torch.rand(1, 20, 20)
    # The mean colour of white is white: deleting changes nothing, and so does inserting.
    assert deletion(Share(), images, labels, relevance).item() == pytest.approx(1, abs=1e-4)
    assert insertion(Share(), images, labels, relevance).item() == pytest.approx(1, abs=1e-4)
    # Half white, half black: the mean is grey, so the share falls to a quarter and comes back.
    images[:, :, :10] = 0
    assert deletion(Share(), images, labels, images[:, 0]).item() == pytest.approx(0.375, abs=1e-3)


def test_saco_counts_pairs_by_what_they_differ():
    image = torch.rand(1, 1, 10, 10)
    worth = torch.arange(10.0, 0, -1).repeat_interleave(10).reshape(10, 10) / 600

    class Steps(nn.Module):
        """Each tenth of the pixels that is not replaced adds what it is worth to the probability."""

        def forward(self, x: Tensor) -> Tensor:
            share = (worth * (x == image)[:, 0]).sum(dim=(1, 2)).clamp(1e-6, 1 - 1e-6)
            return torch.stack([torch.zeros_like(share), torch.logit(share)], dim=1)

    labels = torch.tensor([1])
    falling = torch.arange(100.0, 0, -1).reshape(1, 10, 10)
    assert saco(Steps(), image, labels, falling).item() == pytest.approx(1)
    assert saco(Steps(), image, labels, falling.flip(1)).item() == pytest.approx(-1)


@pytest.mark.parametrize("name", ["t2t_vit_7", "vit_tiny_patch16_224", "resnet18", "convnext_atto", "cait_xxs24_224"])
def test_random_weights_are_others_and_leave_random_numbers_alone(name: str):
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=5).eval()
    for parameter in model.parameters():
        parameter.data += 1000
    state = torch.get_rng_state()
    random, again = with_random_weights(model), with_random_weights(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not random.training
    for (key, ours), theirs, same in zip(
        model.named_parameters(), random.parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(theirs, same)
        assert theirs.abs().max() < 10 < ours.abs().max(), key


def test_correlations_of_ranks():
    one = torch.rand(3, 4, 4)
    others = torch.stack([one[0] ** 3, -one[1], torch.ones(4, 4)])
    assert rank_correlations(one, others) == pytest.approx([1, -1, 0])


def test_an_interval_holds_the_mean_and_narrows_with_more_values():
    values = np.random.default_rng(0).normal(size=400).tolist()
    low, high = interval(values)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(4 * np.std(values) / 20, rel=0.2)
    assert interval(values[:4]) == (None, None)
    few_low, few_high = interval(values[:20])
    assert few_high - few_low > 2 * (high - low)


def test_the_share_inside():
    relevance = torch.ones(2, 4, 4)
    relevance[1, :2, :2] = 5
    inside = torch.zeros(2, 4, 4)
    inside[:, :2, :2] = 1
    assert share_inside(relevance, inside).tolist() == pytest.approx([0.25, 20 / 32])
