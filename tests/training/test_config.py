"""Settings that make no sense are told before anything is opened."""

import pytest

from t2t_vit.errors import UserError
from t2t_vit.flags import parse
from t2t_vit.options import configure
from t2t_vit.training.config import TrainConfig, TransferConfig
from t2t_vit.training.recipes import RECIPES

WRONG = {
    "--epochs -3 --lr 0": r"^--epochs must be at least 1, got -3\. --lr must be above 0, got 0\.0\.$",
    "--epochs 2 --warmup-epochs 5": "--warmup-epochs must be at least 0 and below --epochs 2, got 5",
    "--epochs 5 --warmup-epochs 2 --cooldown-epochs 3": "--warmup-epochs 2 and --cooldown-epochs 3 leave none of",
    "--lr 1e-6": "--min-lr must be at least 0 and at most --lr 1e-06, got 1e-05 by default",
    "--warmup-lr 3": "--warmup-lr must be at most --lr 0.003, got 3",
    "--hflip 2": "--hflip must be at least 0 and at most 1, got 2.0",
    "--scale 2 3": "--scale must be above 0 and at most 1 and the smaller one first, got 2.0 3.0",
    "--ratio 2 1": "--ratio must be above 0 and the smaller one first",
    "--img-size 32 -1": "--img-size must be at least 1, got 32 -1",
    "--epochs 9 --mixup-off-epoch 10 --mixup 0.8": "--mixup-off-epoch must be at least 0 and below --epochs 9, got 10",
    "--in-chans 4 --color-jitter 0.4": "--aa and --color-jitter change colours, and have no effect on --in-chans 4",
    "--in-chans 0": "--in-chans must be at least 1, got 0",
    "--recipe imagnet": "Unknown value of --recipe: 'imagnet'. Did you mean imagenet",
    "--teacher-checkpoint x": "--teacher-checkpoint has no effect without --teacher",
    "--model-ema-decay 0.5 --no-model-ema": "--model-ema-decay has no effect beside --no-model-ema",
    "--mixup-off-epoch 3": "has no effect without --mixup or --cutmix",
    "--mixup-switch-prob 0.3 --mixup 0.8": "has no effect without --mixup and --cutmix",
    "--ratio 0.9 1.1 --crop-padding 0.1": "--ratio has no effect beside --crop-padding 0.1",
    "--color-jitter 0.1 --aa rand-m9": "--color-jitter has no effect beside --aa rand-m9",
    "--layer-decay 0.1 --freeze-backbone": "--layer-decay has no effect beside --freeze-backbone",
    "--layer-decay 0.5 --backbone-lr-scale 0.1": "--backbone-lr-scale has no effect beside --layer-decay 0.5",
    "--amp-dtype float16 --no-amp": "--amp-dtype has no effect beside --no-amp",
    "--warmup-lr 1e-5 --warmup-epochs 0": "--warmup-lr has no effect beside --warmup-epochs 0",
}


def settings(words, cls=TrainConfig):
    return parse(cls, ["folder", *words.split()], prog="t2t-vit train")


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_setting_is_told(words):
    with pytest.raises(UserError, match=WRONG[words]):
        settings(words)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "words", ["", "--no-model-ema", "--opt adamw", "--mixup 0", "--crop-padding 0.1", "--aa 3a", "-b 96", "--epochs 1"]
)
def test_what_a_recipe_sets_is_never_held_against_a_person(recipe, words):
    settings(f"--recipe {recipe} {words}")


@pytest.mark.parametrize("words", ["--freeze-backbone", "--layer-decay 0.7"])
def test_what_rules_the_backbone_s_rates_switches_the_recipe_s_own_rule_off(words):
    assert settings(f"--checkpoint x {words}", TransferConfig).backbone_lr_scale is None


def test_python_has_the_recipe_of_the_command_line():
    ours = configure(TrainConfig, data="digits", model="t2t_vit_7")
    assert ours == parse(TrainConfig, ["digits", "--model", "t2t_vit_7"], prog="t2t-vit train")
    assert (ours.recipe, ours.epochs, ours.given) == ("digits", 6, {"data", "model"})


def test_a_transfer_goes_on_without_its_checkpoint_being_named(tmp_path):
    (tmp_path / "config.yaml").write_text("checkpoint: weights.pt\nlr: 0.01\n")
    config = settings(f"--output {tmp_path} --resume", TransferConfig)
    assert (config.checkpoint, config.lr, config.epochs) == ("weights.pt", 0.01, 60)
