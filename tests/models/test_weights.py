"""How checkpoints go into networks: exactly, resized, adapted, or not at all."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.models.checkpoint_formats import Checkpoint, read_checkpoint
from t2t_vit.models.names import VARIANTS
from t2t_vit.models.weights import identify, load_checkpoint, load_for_transfer_learning


def bare(network, **said):
    return Checkpoint("weights.pth", "bare state dict", dict(network.state_dict()), **said)


# Formats, end to end


@pytest.mark.parametrize("kind", ["official", "cifar", "ours", "bare", "safetensors", "hub"])
def test_every_format_comes_back_exactly(tmp_path, kind, make, logits, write):
    source, target = make(seed=1), make(seed=2)
    report = load_checkpoint(target, write(kind, source, tmp_path / "file"))
    assert torch.equal(logits(target, 1, 3, 64, 64), logits(source, 1, 3, 64, 64))
    assert (report.loaded, report.changed, report.left) == (len(source.state_dict()), [], [])


def test_ema_is_a_choice(tmp_path, make, write):
    path = write("official", make(seed=1), tmp_path / "file")
    average, raw = make(), make()
    assert load_checkpoint(average, path).used_ema
    assert not load_checkpoint(raw, path, use_ema=False).used_ema
    assert torch.equal(average.cls_token, make(seed=1).cls_token)
    assert not torch.equal(raw.cls_token, average.cls_token)


def test_timm_loads_a_released_file(tmp_path, make, write):
    source = make(seed=1, small=False, num_classes=1000)
    path = write("official", source, tmp_path / "71.7_T2T_ViT_7.pth.tar")
    overlay = {"file": str(path), "custom_load": True}
    model = timm.create_model("t2t_vit_7", True, overlay, img_size=64, num_classes=7)
    assert torch.equal(model.cls_token, source.cls_token)
    assert model.head.weight.shape[0] == 7


# What is changed, and said


def test_head_for_other_classes(make):
    model = make(num_classes=3)
    own_head = model.head.weight.clone()
    report = load_checkpoint(model, bare(make(seed=1)))
    assert report.changed == ["head: rebuilt for 3 classes, the file has 5"]
    assert torch.equal(model.head.weight, own_head)
    assert report.loaded == len(model.state_dict()) - 2


def test_head_missing_on_either_side(make):
    report = load_checkpoint(make(num_classes=0), bare(make()))
    assert (report.changed, report.left) == ([], ["head.weight", "head.bias"])
    report = load_checkpoint(make(), bare(make(num_classes=0)))
    assert report.changed == ["head: rebuilt for 5 classes, the file has no head"]


def test_auxiliary_head_is_left_out(make):
    checkpoint = bare(make(seed=1))
    checkpoint.state_dict.update({"aux_head.weight": torch.ones(1000, 32), "aux_head.bias": torch.ones(1000)})
    report = load_checkpoint(make(), checkpoint)
    assert (report.changed, report.left) == ([], ["aux_head.weight", "aux_head.bias"])


def test_positions_for_another_size(make):
    """4 x 4 of a square file to 3 x 5, against interpolation written out."""
    source = make(seed=1)
    source.pos_embed.normal_(generator=torch.Generator().manual_seed(3))
    model = make(img_size=(48, 80))
    report = load_checkpoint(model, bare(source))
    assert report.changed == ["positions: resampled from 4 x 4 to 3 x 5 tokens"]
    grid = source.pos_embed[0, 1:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, size=(3, 5), mode="bicubic").reshape(32, 15).T
    torch.testing.assert_close(model.pos_embed[0, 1:], expected)
    assert torch.equal(model.pos_embed[0, 0], source.pos_embed[0, 0])


def test_positions_of_a_rectangle_with_as_many_tokens(make, small):
    rectangle = make(img_size=(32, 128))
    said = {"model": "t2t_vit_7", "model_args": {**small, "img_size": [32, 128]}}
    changed = load_checkpoint(make(), bare(rectangle, **said)).changed
    assert changed == ["positions: resampled from 2 x 8 to 4 x 4 tokens"]
    assert load_checkpoint(make(), bare(rectangle)).changed == []  # saved bare: these may be this very network's


def test_positions_of_official_files_are_square(make):
    checkpoint = Checkpoint("81.5.pth.tar", "official T2T-ViT checkpoint", dict(make().state_dict()))
    report = load_checkpoint(make(img_size=(32, 128)), checkpoint)
    assert report.changed == ["positions: resampled from 4 x 4 to 2 x 8 tokens"]


def test_bare_rectangle_comes_back_as_it_was(make):
    source, model = make(seed=1, img_size=(48, 80)), make(img_size=(48, 80))
    assert load_checkpoint(model, bare(source)).changed == []
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_bare_rectangle_for_another_size_is_refused(make):
    message = r"weights\.pth has 15 positions, which make no square grid, .* the model's grid is 4 x 4\. Give the model"
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(), bare(make(img_size=(48, 80))))


def even_channels(model):
    """Gives the first norm the same scale and shift in every channel, so that adapting it loses nothing."""
    with torch.no_grad():
        if hasattr(model.tokens_to_token, "attention1"):
            norm = model.tokens_to_token.attention1.norm1
            for tensor in (norm.weight, norm.bias):
                tensor.copy_(tensor.view(model.in_chans, -1)[0].repeat(model.in_chans))
    return model


@pytest.mark.parametrize("tokens", ["performer", "transformer", "convolution", "patch"])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 6)])
def test_grey_images_look_the_same_in_any_number_of_channels(tokens, old, new, make):
    source = even_channels(make(seed=1, in_chans=old, tokens=tokens))
    model = make(seed=2, in_chans=new, tokens=tokens)
    report = load_checkpoint(model, bare(source))
    assert report.changed == [f"input channels: adapted from {old} to {new}"]
    grey = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(grey.repeat(1, new, 1, 1)), source(grey.repeat(1, old, 1, 1)))


def test_fourth_channel_repeats_the_first(make):
    source, model = make(seed=1), make(seed=2, in_chans=4)
    load_checkpoint(model, bare(source))
    given = source.tokens_to_token.attention1.norm1.weight.view(3, 49)
    adapted = model.tokens_to_token.attention1.norm1.weight.view(4, 49)
    torch.testing.assert_close(adapted, given[[0, 1, 2, 0]])
    given = source.tokens_to_token.attention1.kqv.weight.view(192, 3, 49)
    adapted = model.tokens_to_token.attention1.kqv.weight.view(192, 4, 49)
    torch.testing.assert_close(adapted, given[:, [0, 1, 2, 0]] * 3 / 4)


def test_strict_refuses_every_change(make):
    checkpoint = bare(make())
    load_checkpoint(make(), checkpoint, strict=True)
    checkpoint.state_dict["aux_head.bias"] = torch.ones(1)
    with pytest.raises(UserError, match=r"strict=True asks for: aux_head\.bias: left out\."):
        load_checkpoint(make(), checkpoint, strict=True)
    message = (
        r"weights\.pth does not fit t2t_vit_7 as it is, which strict=True asks for: "
        r"head: rebuilt for 3 classes, the file has 5, aux_head\.bias: left out\."
    )
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(num_classes=3), checkpoint, strict=True)


def test_report_in_words(make):
    checkpoint = bare(make(), used_ema=True)
    loaded = len(checkpoint.state_dict) - 2
    checkpoint.state_dict.update({f"aux_head.{i}": torch.ones(1) for i in range(7)})
    report = load_checkpoint(make(num_classes=3, img_size=96), checkpoint)
    assert str(report).splitlines() == [
        f"Loaded {loaded} tensors of the bare state dict weights.pth (moving average of the weights)",
        "  changed: head: rebuilt for 3 classes, the file has 5",
        "  changed: positions: resampled from 4 x 4 to 6 x 6 tokens",
        "  left out: aux_head.0, aux_head.1, aux_head.2, aux_head.3, aux_head.4 and 2 more",
    ]


# What is refused


def test_another_models_file_is_named(make, of_shapes):
    message = (
        r"weights\.pth does not fit: expected a t2t_vit_7, this file is a t2t_vit_19; \d+ tensors do not fit: "
        r"cls_token is \(1, 1, 448\), expected \(1, 1, 256\), "
    )
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(small=False), of_shapes("t2t_vit_19"))


def test_all_candidates_are_named(make, of_shapes):
    with pytest.raises(UserError, match="this file is a t2t_vit_14 or t2t_vit_14_resnext;"):
        load_checkpoint(make(), of_shapes("t2t_vit_14"))


def test_a_deeper_models_file_is_refused_though_all_tensors_match(make, of_shapes):
    with pytest.raises(UserError, match=r"is a t2t_vit_10; 33 tensors do not fit: blocks\.7\.\S+ has no place"):
        load_checkpoint(make(small=False), of_shapes("t2t_vit_10"))


def test_missing_tensor_is_named(make):
    checkpoint = bare(make())
    del checkpoint.state_dict["tokens_to_token.attention1.w"]
    message = (
        "this file is no network known here: it holds cls_token, pos_embed, .* and .* more; "
        r"1 tensors do not fit: tokens_to_token\.attention1\.w is missing\."
    )
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(), checkpoint)


def test_same_model_of_other_dimensions(make, small):
    checkpoint = bare(make(mlp_ratio=1.0), model="t2t_vit_7", model_args={**small, "mlp_ratio": 1.0})
    with pytest.raises(UserError, match="expected a t2t_vit_7, this file is a t2t_vit_7 too, but of other dimensions;"):
        load_checkpoint(make(), checkpoint)


def test_nothing_matches(make):
    checkpoint = bare(nn.Sequential(nn.Linear(2, 2)))
    message = "this file is no network known here: it holds 0.weight, 0.bias; nothing in it matches"
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(), checkpoint)


def test_a_refused_file_leaves_the_model_alone(make, of_shapes):
    model = make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError):
        load_checkpoint(model, of_shapes("t2t_vit_10"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_twin_of_equal_shapes_is_loaded_and_told(make, small):
    checkpoint = bare(make("t2t_vit_14_resnext"), model="t2t_vit_14_resnext", model_args=small)
    report = load_checkpoint(make("t2t_vit_14"), checkpoint)
    assert report.changed == ["model: the file is for t2t_vit_14_resnext, which t2t_vit_14 shares all shapes with"]


# Names


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_7_64px", "t2t_vit_7_no_t2t"])
def test_identify_whatever_the_input_and_the_classes(name, make, of_shapes):
    assert identify(of_shapes(name).state_dict) == [name]
    assert identify(make(name, small=False, in_chans=2, img_size=128, num_classes=0).state_dict()) == [name]


@pytest.mark.slow
def test_identify_tells_every_variant_apart_but_resnext(of_shapes):
    twins = ["t2t_vit_14", "t2t_vit_14_resnext"]
    assert {name: identify(of_shapes(name).state_dict) for name in VARIANTS} == {
        name: twins if name in twins else [name] for name in VARIANTS
    }


def test_nobodys_random_numbers_are_drawn(make, small):
    """Not even by the networks that are built for their shapes: the performer draws its features on the CPU."""
    checkpoint = bare(make(), model="t2t_vit_7", model_args={**small, "drop_path_rate": 0.1})
    model = make(img_size=96)
    before = torch.get_rng_state()
    load_checkpoint(model, checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


# Transfer


def test_transfer_learning_keeps_the_new_head(tmp_path, make, write):
    path = write("official", make(seed=1), tmp_path / "71.7_T2T_ViT_7.pth.tar")
    model = make(num_classes=10)
    head = model.head.weight.clone()
    report = load_for_transfer_learning(model, path, use_ema=True, strict=False, num_classes=10)
    assert report.changed == ["head: rebuilt for 10 classes, the file has 5"]
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.cls_token, make(seed=1).cls_token)


def test_transfer_learning_checks_the_class_count(tmp_path, make):
    message = "num_classes=10, but the model has 5 classes: create it with num_classes=10, or pass num_classes=5 here"
    with pytest.raises(UserError, match=message):
        load_for_transfer_learning(make(), tmp_path / "never_read", num_classes=10)


def test_a_checkpoint_read_once_can_be_loaded_twice(tmp_path, make, write):
    checkpoint = read_checkpoint(write("bare", make(seed=1), tmp_path / "a.pth"))
    for model in (make(), make(img_size=96)):
        load_checkpoint(model, checkpoint)
        assert torch.equal(model.cls_token, checkpoint.state_dict["cls_token"])
