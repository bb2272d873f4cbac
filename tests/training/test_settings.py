"""Settings that make no sense are told before anything is opened."""

import pytest

from t2t_vit.errors import UserError
from t2t_vit.options import parse
from t2t_vit.training.config import TrainConfig, TransferConfig
from t2t_vit.training.recipes import RECIPES
from t2t_vit.training.settings import refuse_wrong_settings

WRONG = {
    "--epochs 0 --lr -1": r"^--epochs must be at least 1, got 0; --lr must be positive, got -1.0",
    "--epochs 2 --warmup-epochs 5": "--warmup-epochs must be from 0 to 1, got 5",
    "--epochs 2 --warmup-epochs 0 --cooldown-epochs 2": "--cooldown-epochs must be from 0 to 1, got 2",
    "--lr 1e-6": "--min-lr must be from 0 to --lr 1e-06, got 1e-05",
    "--min-lr -1": "--min-lr must be from 0 to",
    "--warmup-lr 3": "--warmup-lr must be from 0 to --lr 0.0005, got 3.0",
    "--backbone-lr-scale 0": "--backbone-lr-scale must be above 0, at most 1, got 0.0",
    "--layer-decay 0": "--layer-decay must be above 0",
    "--mixup -1": "--mixup must be at least 0, got -1.0",
    "--seed -1": "--seed must be at least 0",
    "--weight-decay -1": "--weight-decay must be at least 0",
    "--drop 1.5": "--drop must be from 0 to below 1, got 1.5",
    "--crop-padding -1": "--crop-padding must be from 0 to below 1",
    "--hflip 2": "--hflip must be from 0 to 1, got 2.0",
    "--crop-pct 0": "--crop-pct must be above 0, at most 1",
    "--clip-grad -1": "--clip-grad must be positive",
    "--scale 1 0.5": "--scale must be two positive numbers, the smaller one first, got 1.0 0.5",
    "--img-size 0": "--img-size must be at least 1, got 0",
    "--img-size 32 -1": "--img-size must be at least 1, got 32 -1",
    "--val-fraction 7": "--val-fraction must be between 0 and 1",
    "--teacher t2t_vit_7 --distill-temperature 0": "--distill-temperature must be positive",
    "--teacher nonsense": "Unknown model 'nonsense'",
    "--model t2t_vit_13": "Unknown model 't2t_vit_13'",
    "--opt adamx": "Unknown optimiser 'adamx'. Did you mean adam",
    "--opt adahessian": "--opt adahessian wants second derivatives",
    "--opt sgd --momentum 0": "--opt sgd cannot be used here: Nesterov momentum requires a momentum",
    "--layer-decay 0.5 --backbone-lr-scale 0.1": "--layer-decay and --backbone-lr-scale exclude each other",
}
IDLE = {
    "--teacher-checkpoint x": "without --teacher",
    "--distill-alpha 0.9": "without --teacher",
    "--model-ema-decay 0.5 --no-model-ema": "beside --no-model-ema",
    "--mixup-off-epoch 3": "without --mixup or --cutmix",
    "--mixup-off-epoch 300 --mixup 0.8": "in 100 epochs",
    "--mixup-switch-prob 0.3 --mixup 0.8": "unless --mixup and --cutmix are both given",
    "--ratio 0.9 1.1 --crop-padding 0.1": "beside --crop-padding",
    "--color-jitter 0.1 --aa rand-m9": "beside --aa rand-m9",
    "--momentum 0.5 --opt adamw": "on --opt adamw",
    "--backbone-lr-scale 0.1 --freeze-backbone": "beside --freeze-backbone",
    "--amp-dtype float16 --no-amp": "beside --no-amp",
    "--warmup-lr 1e-5 --warmup-epochs 0": "without --warmup-epochs",
}


def settings(words, cls=TrainConfig):
    return parse(cls, ["folder", *words.split()], prog="t2t-vit train")


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_setting_is_told(words):
    with pytest.raises(UserError, match=WRONG[words]):
        refuse_wrong_settings(settings(words))


@pytest.mark.parametrize("words", IDLE)
def test_a_setting_without_effect_is_refused(words):
    with pytest.raises(UserError) as refusal:
        refuse_wrong_settings(settings(words))
    assert str(refusal.value) == f"{words.split()[0]} has no effect {IDLE[words]}."


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "words", ["", "--no-model-ema", "--opt adamw", "--mixup 0", "--crop-padding 0.1", "--aa 3a", "-b 96", "--epochs 1"]
)
def test_what_a_recipe_sets_is_never_held_against_a_person(recipe, words):
    refuse_wrong_settings(settings(f"--recipe {recipe} {words}"))


@pytest.mark.parametrize("words", ["--freeze-backbone", "--layer-decay 0.7"])
def test_what_rules_the_backbone_s_rates_switches_the_recipe_s_own_rule_off(words):
    config = settings(f"--checkpoint x {words}", TransferConfig)
    refuse_wrong_settings(config)
    assert config.backbone_lr_scale is None
