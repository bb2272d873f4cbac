import pytest
import timm
import torch

from t2t_vit.errors import UserError
from t2t_vit.models.variants import VARIANTS, create_model, list_models, resolve_name


def test_all_are_registered_with_timm():
    assert list_models() == list(VARIANTS)
    assert set(VARIANTS) == set(timm.list_models("t2t_vit*"))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("t2t_vit_14", "t2t_vit_14"),
        ("T2t_vit_14", "t2t_vit_14"),
        ("T2T-ViT-14", "t2t_vit_14"),
        ("T2T-ViT_t-19", "t2t_vit_t_19"),
        ("T2t_vit_14_resnext", "t2t_vit_14_resnext"),
        ("t2t_vit_14.in1k_384", "t2t_vit_14.in1k_384"),
    ],
)
def test_published_spellings(spelling, name):
    assert resolve_name(spelling) == name


def test_unknown_names_get_the_closest():
    with pytest.raises(UserError, match=r"Unknown model 't2t_vit_13'. Did you mean .*t2t_vit_1"):
        resolve_name("t2t_vit_13")
    with pytest.raises(UserError, match=r"Unknown weights 't2t_vit_14.imagenet'"):
        resolve_name("t2t_vit_14.imagenet")
    with pytest.raises(UserError, match=r"Unknown model 'resnet18'"):
        create_model("resnet18")


def test_create_model_passes_arguments_on():
    model = create_model("T2t_vit_7", img_size=(32, 48), in_chans=1, num_classes=4, drop_path_rate=0.1)
    assert (model.img_size, model.in_chans, model.num_classes) == ((32, 48), 1, 4)
    assert model.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)
    with pytest.raises(TypeError, match=r"unknown_argument"):
        create_model("t2t_vit_7", unknown_argument=1)


def test_small_presets_keep_8_x_8_tokens():
    assert create_model("t2t_vit_7_32px", device="meta").grid_size == (8, 8)
    assert create_model("t2t_vit_7_64px", device="meta").grid_size == (8, 8)


def test_create_model_loads_a_checkpoint_of_another_size_and_class_count_even_for_features(tmp_path):
    torch.manual_seed(0)
    trained = create_model("t2t_vit_7", img_size=32, num_classes=4)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "official.pth.tar")
    model = create_model("t2t_vit_7", checkpoint=str(tmp_path / "official.pth.tar"), img_size=48, num_classes=7)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, trained.blocks[0].mlp.fc1.weight)
    assert model.pos_embed.shape[1] == 10
    features = create_model(
        "t2t_vit_7", checkpoint=str(tmp_path / "official.pth.tar"), img_size=32, features_only=True, out_indices=[0]
    )
    assert torch.equal(features.model.blocks[0].mlp.fc1.weight, trained.blocks[0].mlp.fc1.weight)
