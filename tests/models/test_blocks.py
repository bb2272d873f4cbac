import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.models.blocks import Block, ResidualDepthwiseConv, Transition, build_backbone


@pytest.mark.parametrize("kind", ["plain", "se", "ghost", "local"])
def test_blocks_keep_the_width(kind):
    blocks = build_backbone(kind, 24, 2, num_heads=3, mlp_ratio=3.0)
    x = torch.randn(2, 5, 24)
    for block in blocks:
        x = block(x, (2, 2))
    assert x.shape == (2, 5, 24)


def test_dense_stages_grow_and_transitions_halve():
    blocks = build_backbone("dense", 16, (2, 1), num_heads=4, mlp_ratio=2.0, growth_rate=8)
    assert [block.out_dim for block in blocks] == [24, 32, 16, 24]
    assert isinstance(blocks[2], Transition)


def test_a_dense_block_keeps_its_input_in_front():
    (block,) = build_backbone("dense", 16, (1,), num_heads=4, mlp_ratio=2.0, growth_rate=8)
    x = torch.randn(1, 3, 16)
    torch.testing.assert_close(block(x)[..., :16], x, rtol=0, atol=0)


def test_drop_path_rises_linearly_over_all_blocks():
    blocks = build_backbone("plain", 16, 5, num_heads=4, mlp_ratio=2.0, drop_path=0.4)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("kind", ["plain", "se", "ghost", "dense", "local"])
def test_skipping_dropped_images_is_drop_path(kind, monkeypatch):
    depth, growth_rate = ((2,), 8) if kind == "dense" else (2, 0)
    blocks = build_backbone(kind, 16, depth, num_heads=4, mlp_ratio=3.0, growth_rate=growth_rate, drop_path=0.5)
    block = blocks[-1].train()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    results = []
    for skips in (True, False):
        if not skips:
            monkeypatch.setattr(Block, "_skips_dropped", lambda self, x: False)
        x = torch.randn(9, 5, 16 + growth_rate, generator=torch.Generator().manual_seed(0)).requires_grad_()
        torch.manual_seed(0)
        y = block(x, (2, 2))
        block.zero_grad()
        y.square().mean().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in block.parameters())])
    torch.testing.assert_close(*results)


def test_a_dropped_image_costs_nothing():
    *_, block = build_backbone("plain", 16, 2, num_heads=4, mlp_ratio=2.0, drop_path=0.5)
    computed = []
    block.mlp.register_forward_hook(lambda module, inputs, output: computed.append(len(inputs[0])))
    x = torch.randn(64, 5, 16)
    y = block(x)
    block.eval()(x)
    assert 0 < computed[0] < 64
    assert computed[1] == 64
    assert y.shape == x.shape


def test_a_branch_that_every_image_drops_learns_nothing():
    *_, block = build_backbone("plain", 16, 2, num_heads=4, mlp_ratio=2.0, drop_path=1.0)
    x = torch.randn(3, 5, 16)
    y = block(x)
    y.sum().backward()
    torch.testing.assert_close(y, x)
    assert all((parameter.grad == 0).all() for parameter in block.parameters())


@pytest.mark.slow
def test_a_compiled_block_drops_the_same_images():
    *_, block = build_backbone("plain", 16, 2, num_heads=4, mlp_ratio=2.0, drop_path=0.5)
    results = []
    for run in (block, torch.compile(block, backend="eager", fullgraph=True)):
        torch.manual_seed(0)
        results.append(run(torch.ones(8, 5, 16)))
    torch.testing.assert_close(*results)


def test_squeeze_excite_scales_channels_alike_for_all_tokens():
    (block,) = build_backbone("se", 32, 1, num_heads=4, mlp_ratio=2.0)
    x = torch.randn(1, 6, 32)
    ratio = block.attn.se_layer(x) / x
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert ((ratio > 0) & (ratio < 1)).all()


@pytest.mark.parametrize("grid", [(2, 5), (1, 3), (4, 4)])
def test_the_depthwise_convolution_adds_nine_neighbours_to_each_token_of_the_map(grid):
    h, w = grid
    conv = ResidualDepthwiseConv(6)
    nn.init.normal_(conv.weight)
    nn.init.normal_(conv.bias)
    x = torch.randn(3, 1 + h * w, 6)
    found = conv(x, grid)
    maps = x[:, 1:].unflatten(1, grid)  # (B, h, w, C)
    padded, expected = F.pad(maps, (0, 0, 1, 1, 1, 1)), maps + conv.bias
    for row in range(3):
        for column in range(3):
            expected = expected + padded[:, row : row + h, column : column + w] * conv.weight[:, 0, row, column]
    torch.testing.assert_close(found[:, 1:], expected.flatten(1, 2))
    assert torch.equal(found[:, :1], x[:, :1])


def test_a_local_mlp_lets_each_token_see_its_neighbours_and_the_class_token_none():
    (block,) = build_backbone("local", 8, 1, num_heads=2, mlp_ratio=2.0)
    nn.init.normal_(block.mlp.dwconv.weight)
    x = torch.randn(1, 1 + 4 * 5, 8, requires_grad=True)
    sees = []
    for token in (0, 1, 1 + 2 * 5 + 2):  # the class token, a corner, one amid the map
        (gradient,) = torch.autograd.grad(block.mlp(x, (4, 5))[:, token].sum(), x)
        sees.append(gradient[0].abs().sum(dim=1).nonzero().flatten().tolist())
    assert sees == [[0], [1, 2, 6, 7], [7, 8, 9, 12, 13, 14, 17, 18, 19]]


def test_a_local_block_starts_as_the_plain_one_and_learns():
    grid, x, outputs = (3, 4), torch.randn(2, 13, 16), []
    for kind in ("plain", "local"):
        torch.manual_seed(0)
        (block,) = build_backbone(kind, 16, 1, num_heads=4, mlp_ratio=2.0)
        outputs.append(block(x, grid))
    assert torch.equal(*outputs)
    outputs[1].square().mean().backward()
    assert (block.mlp.dwconv.weight.grad != 0).all()
    assert (block.mlp.dwconv.bias.grad != 0).all()


def test_mistakes_are_told():
    common = {"num_heads": 4, "mlp_ratio": 2.0}
    with pytest.raises(UserError, match=r"Unknown kind of block 'dens'. Did you mean dense"):
        build_backbone("dens", 16, 2, **common)
    with pytest.raises(UserError, match=r"growth_rate must be positive for dense blocks"):
        build_backbone("dense", 16, (2, 2), **common)
    with pytest.raises(UserError, match=r"depth is a list of stage depths for dense blocks"):
        build_backbone("plain", 16, (2, 2), **common)
    with pytest.raises(UserError, match=r"MLP ratio of 3, got 2"):
        build_backbone("ghost", 16, 2, **common)
    with pytest.raises(UserError, match=r"width 18 is not a multiple of the number of heads, 4"):
        build_backbone("plain", 18, 2, **common)
    (block,) = build_backbone("local", 16, 1, **common)
    with pytest.raises(AssertionError, match=r"local block needs the grid of its tokens: block\(x, \(h, w\)\)"):
        block(torch.randn(1, 5, 16))
