"""The protocol that timm's users expect, on every model where it is cheap; `make test-timm` runs timm's own tests."""

import warnings

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from timm.optim import param_groups_weight_decay

from t2t_vit.errors import UserError
from t2t_vit.models.names import VARIANTS
from t2t_vit.models.t2t_vit import T2TViT

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "token_dim": 8, "num_classes": 5}


def tiny(**changes):
    torch.manual_seed(0)
    return T2TViT(**{"img_size": 32, **TINY, **changes}).eval()


@pytest.mark.parametrize("size", [(64, 96), (112, 448), (260, 260), (50, 50)])
@pytest.mark.parametrize("tokens", ["performer", "transformer", "convolution", "patch"])
def test_any_image_size(size, tokens):
    model = tiny(img_size=size, tokens=tokens)
    assert model(torch.randn(1, 3, *size)).shape == (1, 5)
    assert model.pos_embed.shape[1] == 1 + model.grid_size[0] * model.grid_size[1]


@pytest.mark.parametrize("in_chans", [1, 2, 4, 13])
@pytest.mark.parametrize("tokens", ["performer", "convolution"])
def test_any_number_of_channels(in_chans, tokens):
    model = tiny(in_chans=in_chans, tokens=tokens)
    assert model(torch.randn(1, in_chans, 32, 32)).shape == (1, 5)


def test_no_classes_gives_features():
    model = tiny(num_classes=0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 32)


def shallow(name, **kwargs):
    """A network of the table with one block, where it has many of a kind."""
    depth = VARIANTS[name].model_args["depth"]
    return timm.create_model(name, depth=1 if isinstance(depth, int) else (1,) * len(depth), **kwargs)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs_at_a_small_size_with_other_channels_and_classes(name):
    model = shallow(name, img_size=(32, 48), in_chans=1, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 32, 48)).shape == (1, 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient(name):
    model = shallow(name, img_size=32, num_classes=3)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_another_size_than_the_model_s_is_refused():
    with pytest.raises(AssertionError, match=r"height does not fit: the model takes \(32, 32\); see set_input_size"):
        tiny()(torch.randn(1, 3, 48, 32))
    with pytest.raises(AssertionError, match=r"width does not fit"):
        tiny()(torch.randn(1, 3, 32, 48))


def test_too_small_an_image_is_told_the_smallest_size():
    with pytest.raises(UserError, match=r"2 x 40 pixels is too small .* smallest size is 3 x 3"):
        tiny(img_size=(2, 40))
    with pytest.raises(UserError, match=r"smallest size is 16 x 16"):
        tiny(img_size=8, tokens="patch")
    with pytest.raises(UserError, match=r"too small"):
        tiny(dynamic_img_size=True)(torch.randn(1, 3, 2, 2))


def test_set_input_size_and_dynamic_img_size_agree():
    dynamic, fixed = tiny(dynamic_img_size=True), tiny()
    assert torch.equal(dynamic.pos_embed, fixed.pos_embed)
    fixed.set_input_size((48, 64))
    x = torch.randn(1, 3, 48, 64)
    torch.testing.assert_close(dynamic(x), fixed(x))
    assert fixed.grid_size == (3, 4)


def local(**changes):
    """A network of local blocks whose convolutions are not zero."""
    model = tiny(block="local", **changes)
    for block in model.blocks:
        torch.nn.init.normal_(block.mlp.dwconv.weight, std=0.3)
    return model


def test_local_blocks_are_plain_ones_but_for_a_convolution_that_weight_decay_takes():
    added = {
        f"blocks.{i}.mlp.dwconv.{part}": (64, *rest)
        for i in (0, 1)
        for part, rest in (("weight", (1, 3, 3)), ("bias", ()))
    }
    own, plain = tiny(block="local").state_dict(), tiny().state_dict()
    assert {key: tuple(own[key].shape) for key in own.keys() - plain.keys()} == added
    torch.testing.assert_close({key: own[key] for key in plain}, plain, rtol=0, atol=0)
    kept, decayed = param_groups_weight_decay(local(), 0.05, no_weight_decay_list=local().no_weight_decay())
    shapes = [[parameter.shape for parameter in group["params"]] for group in (kept, decayed)]
    assert [group.count(torch.Size([64, 1, 3, 3])) for group in shapes] == [0, 2]


def test_local_blocks_know_the_grid_of_every_image():
    dynamic, fixed = local(dynamic_img_size=True), local()
    fixed.load_state_dict(dynamic.state_dict())
    for size in ((32, 64), (64, 32)):  # as many tokens
        x = torch.randn(1, 3, *size)
        fixed.set_input_size(size)
        torch.testing.assert_close(dynamic(x), fixed(x))
        final, maps = fixed.forward_intermediates(x)
        torch.testing.assert_close(final, fixed.forward_features(x))
        assert [found.shape[2:] for found in maps] == [(size[0] // 16, size[1] // 16)] * 2


def test_a_local_network_scripted_traced_and_exported_answers_alike():
    model, x = local(img_size=(32, 64)), torch.randn(2, 3, 32, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about TorchScript's age
        others = torch.jit.script(model), torch.jit.trace(model, x), torch.export.export(model, (x,)).module()
    for other in others:
        torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize("tokens", ["performer", "transformer"])
def test_an_exported_network_keeps_to_one_layout(tokens):
    """Another one, beside that of a parameter, is what ExecuTorch's operators refuse."""
    program = torch.export.export(tiny(tokens=tokens), (torch.randn(2, 3, 32, 32),))
    assert not [node for node in program.graph.nodes if torch.channels_last in (*node.args, *node.kwargs.values())]


def test_dynamic_img_size_takes_its_own_size_unchanged():
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(tiny(dynamic_img_size=True)(x), tiny()(x), rtol=0, atol=0)


def test_intermediates_are_the_blocks_outputs():
    model = tiny(img_size=(32, 64))
    x = torch.randn(2, 3, 32, 64)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    final, maps = model.forward_intermediates(x, return_prefix_tokens=True)
    torch.testing.assert_close(final, model.forward_features(x))
    for (as_map, prefix), output in zip(maps, outputs, strict=False):
        torch.testing.assert_close(as_map, output[:, 1:].transpose(1, 2).reshape(2, 32, 2, 4))
        torch.testing.assert_close(prefix, output[:, :1])


def test_dense_intermediates_skip_transitions_and_refuse_a_norm_that_does_not_fit():
    model = tiny(block="dense", depth=(2, 2), growth_rate=8)
    assert [info["num_chs"] for info in model.feature_info] == [40, 48, 32, 40]
    x = torch.randn(1, 3, 32, 32)
    assert [y.shape[1] for y in model.forward_intermediates(x, intermediates_only=True)] == [40, 48, 32, 40]
    with pytest.raises(UserError, match=r"Block 0 makes 48 channels, the final norm takes 64"):
        tiny(block="dense", depth=(2, 2), growth_rate=16).forward_intermediates(x, norm=True)


def test_features_only_at_the_network_s_size():
    model = timm.create_model("t2t_vit_7", features_only=True, img_size=(32, 48), out_indices=(1, 4))
    assert [tuple(y.shape) for y in model(torch.randn(1, 3, 32, 48))] == [(1, 256, 2, 3)] * 2
    assert model.feature_info.reduction() == [16, 16]


@pytest.mark.parametrize("block", ["plain", "local"])
def test_gradient_checkpointing_changes_no_gradient(block):
    x = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model = tiny(block=block).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_positions_and_random_features_are_buffers_under_the_official_keys():
    model = tiny()
    assert {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"} <= set(model.state_dict())
    assert not {"pos_embed", "tokens_to_token.attention1.w"} & {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize("block", ["plain", "local"])
def test_a_model_made_on_the_meta_device_can_be_initialised_later(block):
    model = T2TViT(img_size=32, **TINY, block=block, device="meta").to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    model.init_weights()
    assert torch.equal(model.pos_embed, tiny().pos_embed)
    assert model.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()
    w = model.tokens_to_token.attention1.w
    torch.testing.assert_close(w @ w.T, w.shape[0] * torch.eye(w.shape[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_7_local"])
def test_a_whole_network_in_half_precision_stays_near_float32(name, dtype):
    model = timm.create_model(name, img_size=64, num_classes=10).eval()
    for key, parameter in model.named_parameters():
        if "dwconv" in key:  # or it would be zero
            torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 3, 64, 64)
    exact = model(x)
    exact.square().sum().backward()
    exact_gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    with torch.autocast("cpu", dtype):
        result = model(x)
    result.float().square().sum().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert (result.float() - exact).norm() <= 8 * torch.finfo(dtype).eps * exact.norm()
    assert (gradient - exact_gradient).norm() <= 16 * torch.finfo(dtype).eps * exact_gradient.norm()


def test_a_network_converted_to_half_precision_gives_half_precision():
    model = tiny().to(torch.bfloat16)
    assert model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.slow
def test_compiling_makes_one_graph():
    model = tiny()
    graphs = torch._dynamo.explain(model)(torch.randn(1, 3, 32, 32))
    assert graphs.graph_break_count == 0


def test_pools():
    x = torch.randn(1, 3, 32, 32)
    assert tiny(global_pool="avg")(x).shape == (1, 5)
    model = tiny()
    model.reset_classifier(0, "")
    assert model(x).shape == (1, 5, 32)
    with pytest.raises(UserError, match=r"global_pool is one of .* got 'mean'"):
        tiny(global_pool="mean")


def test_every_released_file_has_its_configuration():
    tags = [f"{name}.{weights.tag}" for name, variant in VARIANTS.items() for weights in variant.weights]
    assert len(tags) == 15
    for tag in tags:
        cfg = get_pretrained_cfg(tag)
        assert cfg.url.startswith("https://github.com/yitu-opensource/T2T-ViT/releases/download/main/")
        assert cfg.input_size == ((3, 384, 384) if tag.endswith("_384") else (3, 224, 224))
    assert get_pretrained_cfg("t2t_vit_14").url.endswith("81.5_T2T_ViT_14.pth.tar")
    imagenet = get_pretrained_cfg("t2t_vit_7")
    assert (imagenet.crop_pct, imagenet.interpolation) == (0.9, "bicubic")
    assert get_pretrained_cfg("t2t_vit_14.cifar100").num_classes == 100
    assert get_pretrained_cfg("t2t_vit_14_wide").url == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_7_local"])
@pytest.mark.parametrize("amp", [False, True])
def test_a_network_is_compiled_as_one_graph_and_twice_at_most(name, amp):
    """The second time for a batch of another size, whatever sizes follow."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    model = torch.compile(timm.create_model(name, img_size=32, depth=1), backend=count, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        for batch_size in (4, 4, 3, 5, 2):
            model(torch.randn(batch_size, 3, 32, 32)).sum().backward()
    assert len(graphs) <= 2
