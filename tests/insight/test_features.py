"""Feature maps, and what is counted in them."""

import pytest
import timm
import torch

from t2t_vit.errors import UserError
from t2t_vit.insight.features import Features, LayerStatistics, capture_features, feature_layers, layer_health
from t2t_vit.insight.geometry import Grid


def _captured(name: str, size: tuple[int, int], layers: list[str] | None = None) -> dict[str, Features]:
    torch.manual_seed(0)
    fixed = {} if "resnet" in name or "convnext" in name else {"img_size": size}
    model = timm.create_model(name, **fixed).eval()
    with torch.no_grad(), capture_features(model, layers or feature_layers(model)) as found:
        model(torch.randn(2, 3, *size))
    return found


@pytest.mark.parametrize(
    ("name", "layers", "shapes"),
    [
        ("t2t_vit_7", 3 + 7, {"tokens_to_token.attention1": (64, 12, 20), "blocks.6": (256, 3, 5)}),
        ("t2t_vit_14_conv", 3 + 14, {"tokens_to_token.soft_split0": (64, 12, 20), "tokens_to_token": (384, 3, 5)}),
        ("t2t_vit_7_no_t2t", 1 + 7, {"tokens_to_token": (256, 3, 5)}),
        ("vit_tiny_patch16_224", 1 + 12, {"patch_embed": (192, 3, 5), "blocks.0": (192, 3, 5)}),
        ("resnet50", 1 + 16, {"layer1.0": (256, 12, 20), "layer4.2": (2048, 2, 3)}),
        ("convnext_atto", 12, {"stages.0.blocks.0": (40, 12, 20)}),
    ],
)
def test_layers_of_networks_are_maps(name: str, layers: int, shapes: dict[str, tuple[int, int, int]]):
    found = _captured(name, (48, 80))
    assert len(found) == layers
    for layer, shape in shapes.items():
        assert found[layer].maps.shape == (2, *shape)
        assert (found[layer].grid.height, found[layer].grid.width) == shape[1:]


def test_maps_with_channels_last_are_turned():
    found = _captured("swin_tiny_patch4_window7_224", (56, 112), ["layers.0", "layers.3"])
    assert found["layers.0"].maps.shape == (2, 96, 14, 28)
    assert found["layers.3"].maps.shape == (2, 768, 2, 4)


def test_tokens_are_the_blocks_output_without_the_class_token():
    torch.manual_seed(0)
    model = timm.create_model("t2t_vit_7", img_size=(48, 80)).eval()
    images = torch.randn(1, 3, 48, 80)
    with torch.no_grad(), capture_features(model, ["blocks.2"]) as found:
        model(images)
        expected = model.forward_intermediates(images, indices=[2], intermediates_only=True)[0]
    torch.testing.assert_close(found["blocks.2"].maps, expected)


def test_what_is_no_layer_or_no_map_is_told():
    with pytest.raises(UserError, match=r"^Unknown layer 'blocks\.7'\. Did you mean blocks\.6"):
        _captured("t2t_vit_7", (48, 80), ["blocks.7"])
    with pytest.raises(UserError, match=r"^head of T2TViT returns \(2, 1000\), which is neither maps nor a token"):
        _captured("t2t_vit_7", (48, 80), ["head"])


def test_invalid_channels_are_found_and_no_others():
    torch.manual_seed(0)
    maps = torch.randn(3, 20, 8, 8)
    maps[:, 0] = 0
    maps[:, 1] *= 1e-3  # near zero
    maps[:, 2] = 5 + 0.01 * torch.randn(3, 8, 8)  # near constant
    maps[:2, 3] = 0  # not in the third image
    maps[:, 4] *= 0.4  # small, and says something
    maps[:, 5] += 5  # far from zero, and says something
    measured = LayerStatistics.of(Features(maps, Grid.spread((8, 8), (64, 64))))
    assert measured.zero.nonzero().tolist() == [[0, 0], [0, 1], [0, 3], [1, 0], [1, 1], [1, 3], [2, 0], [2, 1]]
    assert measured.constant.nonzero().tolist() == [[0, 2], [1, 2], [2, 2]]
    row = layer_health("net", "layer", [measured])
    assert (row.channels, row.invalid, row.zero) == (20, 3, 2)
    assert row.invalid_an_image == pytest.approx((4 + 4 + 3) / 3)


def test_tokens_of_huge_norm_are_counted():
    torch.manual_seed(0)
    maps = torch.randn(2, 64, 6, 6)
    maps[0, :, 2, 3] *= 10
    maps[0, :, 0, 0] *= 5
    row = layer_health("net", "layer", [LayerStatistics.of(Features(maps, Grid.spread((6, 6), (96, 96))))])
    assert row.outliers == 1.0  # two in one image, none in the other
    assert 8 < row.largest_norm < 12


def test_a_token_that_differs_stands_out():
    torch.manual_seed(0)
    maps = 3 + 0.1 * torch.randn(1, 64, 6, 6)
    maps[0, :32, 2, 3] += 1  # far from the others in half of the channels
    maps[0, 0] = 7  # and one channel says nothing
    measured = LayerStatistics.of(Features(maps, Grid.spread((6, 6), (96, 96))))
    assert measured.standout.shape == (1, 6, 6)
    assert measured.standout[0].flatten().argmax() == 2 * 6 + 3
    assert measured.standout[0, 2, 3] > 2.5 * measured.standout.median()
    # The mean square over positions and channels is 1, but for the constant channel.
    assert measured.standout.square().mean().item() == pytest.approx(63 / 64, abs=1e-4)


def test_maps_of_few_cells_are_not_asked_whether_they_are_constant():
    maps = torch.full((1, 4, 3, 5), 2.0)
    assert not LayerStatistics.of(Features(maps, Grid.spread((3, 5), (48, 80)))).constant.any()
    assert LayerStatistics.of(Features(torch.full((1, 4, 4, 4), 2.0), Grid.spread((4, 4), (64, 64)))).constant.all()


def test_stages_of_convolution_tokens_lie_where_their_kernels_do():
    found = _captured("t2t_vit_14_conv", (48, 80))
    assert found["tokens_to_token.soft_split0"].grid.first == (1.0, 1.0)


def test_a_network_that_tells_no_layers():
    with pytest.raises(UserError, match=r"^Sequential does not tell its feature maps: name modules with --layers"):
        feature_layers(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))
