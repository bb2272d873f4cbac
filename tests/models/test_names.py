import subprocess
import sys

import pytest

from t2t_vit.errors import UserError
from t2t_vit.models.names import VARIANTS, list_models, resolve_name


def test_models_come_in_table_order():
    assert list_models() == list(VARIANTS)


def test_names_of_this_package_need_no_torch():
    program = (
        "import sys; from t2t_vit.models.names import list_models, resolve_name\n"
        "print([resolve_name(name) for name in list_models()] == list_models(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("t2t_vit_14", "t2t_vit_14"),
        ("T2t_vit_14", "t2t_vit_14"),
        ("T2T-ViT-14", "t2t_vit_14"),
        ("T2T-ViT_t-19", "t2t_vit_t_19"),
        ("T2t_vit_14_resnext", "t2t_vit_14_resnext"),
        ("t2t_vit_14.in1k_384", "t2t_vit_14.in1k_384"),
        ("T2T-ViT-14.cifar10", "t2t_vit_14.cifar10"),
        ("resnet18", "resnet18"),
        ("resnet18.a1_in1k", "resnet18.a1_in1k"),
    ],
)
def test_published_spellings(spelling, name):
    assert resolve_name(spelling) == name


def test_unknown_names_get_the_closest():
    with pytest.raises(UserError, match=r"Unknown model 't2t_vit_13'. Did you mean .*t2t_vit_1"):
        resolve_name("t2t_vit_13")
    with pytest.raises(UserError, match=r"Unknown weights 't2t_vit_14.imagenet'"):
        resolve_name("t2t_vit_14.imagenet")
    with pytest.raises(UserError, match=r"Unknown weights 't2t_vit_14_se.in1k'. Did you mean t2t_vit_14_se"):
        resolve_name("t2t_vit_14_se.in1k")
    with pytest.raises(UserError, match=r"Unknown model 'resnet51'. Did you mean resnet"):
        resolve_name("resnet51")
    with pytest.raises(UserError, match=r"Unknown weights 'resnet18.imagenet'. Did you mean resnet18."):
        resolve_name("resnet18.imagenet")
