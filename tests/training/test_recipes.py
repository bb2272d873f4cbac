import pytest
import yaml

from t2t_vit.cli import main
from t2t_vit.errors import UserError
from t2t_vit.flags import parse
from t2t_vit.training.config import TrainConfig, TransferConfig
from t2t_vit.training.recipes import RECIPES


def settings(*words, cls=TrainConfig):
    return parse(cls, words, prog="t2t-vit train")


@pytest.mark.parametrize(
    ("model", "lr", "weight_decay"),
    [
        ("t2t_vit_7", 1e-3, 0.03),
        ("t2t_vit_10", 1e-3, 0.03),
        ("T2t_vit_12", 1e-3, 0.03),
        ("T2T-ViT-7", 1e-3, 0.03),
        ("t2t_vit_7_no_t2t", 1e-3, 0.03),  # the same backbone
        ("t2t_vit_14_se", 5e-4, 0.05),
        ("t2t_vit_14", 5e-4, 0.05),
        ("t2t_vit_t_14", 5e-4, 0.05),
        ("t2t_vit_19", 5e-4, 0.065),
        ("T2T-ViT_t-24", 5e-4, 0.065),
        ("t2t_vit_19.in1k", 5e-4, 0.065),
    ],
)
def test_imagenet_is_the_official_recipe_for_each_model(model, lr, weight_decay):
    config = settings("imagenet", "--recipe", "imagenet", "--model", model)
    assert (config.lr, config.weight_decay) == (lr, weight_decay)
    expected = {
        "epochs": 310, "cooldown_epochs": 10, "warmup_epochs": 10, "warmup_lr": 1e-6, "min_lr": 1e-5, "batch_size": 512,
        "opt": "adamw", "drop_path": 0.1, "mixup": 0.8, "cutmix": 1.0, "mixup_switch_prob": 0.5, "smoothing": 0.1,
        "aa": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "reprob": 0.25, "scale": (0.08, 1.0), "seed": 42,
        "model_ema_decay": 0.99996, "model_ema_warmup": False, "clip_grad": None,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_learning_rate_follows_the_batch_unless_it_is_given():
    config = settings("imagenet", "--recipe", "imagenet", "-b", "128")
    assert (config.lr, config.min_lr, config.warmup_lr) == pytest.approx((1.25e-4, 2.5e-6, 2.5e-7))
    assert settings("imagenet", "--recipe", "imagenet", "-b", "128", "--lr", "3e-4").lr == 3e-4
    assert settings("folder", "-b", "128").lr == settings("folder").lr  # other recipes name no batch


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("batch_size", [1, 10_000])
def test_the_learning_rate_falls_after_the_warm_up_whatever_the_batch(name, batch_size):
    config = settings("folder", "--recipe", name, "-b", str(batch_size))
    assert config.warmup_lr <= config.lr or not config.warmup_epochs
    assert config.min_lr <= config.lr


def test_a_short_run_has_a_short_warm_up_and_cool_down():
    config = settings("imagenet", "--recipe", "imagenet", "--epochs", "4")
    assert (config.warmup_epochs, config.cooldown_epochs) == (2, 1)


def test_transfer_is_the_official_recipe():
    config = settings("cifar10", "--checkpoint", "x.pth", cls=TransferConfig)
    expected = {
        "recipe": "transfer", "opt": "momentum", "momentum": 0.9, "lr": 0.05, "backbone_lr_scale": 0.01,
        "weight_decay": 5e-4, "min_lr": 2e-4, "epochs": 60, "batch_size": 64, "crop_padding": 0.125,
        "hflip": 0.5, "smoothing": 0.0, "mixup": 0.0, "warmup_epochs": 0,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_help_shows_the_defaults_that_hold(capsys):
    shown_by = {"train": "a tenth of the side (default: 1.0)", "transfer": "by timm's name (default: momentum)"}
    for command, shown in shown_by.items():
        with pytest.raises(SystemExit):
            main([command, "--help-all"])
        assert shown in " ".join(capsys.readouterr().out.split())


def test_the_data_chooses_the_recipe():
    assert settings("digits").recipe == "digits"
    assert settings("digits").hflip == 0.0
    assert (settings("pets").recipe, settings("pets").hflip) == ("small", None)
    with pytest.raises(UserError, match=r"Unknown value of --recipe: 'imagnet'. Did you mean imagenet"):
        settings("pets", "--recipe", "imagnet")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "lr 0.0005 for 512 images a step"),
        (["-b", "128"], "lr 0.000125 for 128 images a step (0.0005 for 512, scaled)"),
        (["-b", "256", "--model", "T2T-ViT-7"], "lr 0.0005 for 256 images a step (0.001 for 512, scaled)"),
        (["-b", "128", "--lr", "1e-4"], "lr 0.0001 for 128 images a step"),
    ],
)
def test_a_scaled_learning_rate_is_said(words, expected, capsys):
    assert main(["train", "folder", "--recipe", "imagenet", *words, "--show"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"# {expected}"


def test_what_would_not_run_is_not_shown(capsys):
    assert main(["train", "folder", "--hflip", "2", "--show"]) == 2
    assert main(["train", "folder", "--model", "t2t_vit_13", "--show"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "--hflip must be at least 0 and at most 1, got 2.0" in output.err


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_shown_and_its_output_read_again(name, capsys, tmp_path):
    words = ["train", "folder", "--recipe", name, "--output", "out"]
    assert main([*words, "--show"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["recipe"] == name
    assert shown.startswith(f"# {name}: {RECIPES[name].about}\n# lr ")
    (tmp_path / "shown.yaml").write_text(shown.replace("show: true", "show: false"))
    assert settings("-c", str(tmp_path / "shown.yaml")) == settings(*words[1:])


def test_few_labels_have_steps_of_their_own_and_no_evaluation_each_epoch():
    config = settings("digits", "--labels", "50")
    assert (config.epochs, config.warmup_epochs, config.eval_share) == (None, None, 0.1)
    assert settings("digits", "--labels", "50", "--epochs", "3").epochs == 3
    assert settings("digits").eval_share == 1.0


def test_another_optimiser_has_its_own_learning_rate():
    assert (settings("pets").opt, settings("pets").lr) == ("muon", 3e-3)
    assert (settings("pets", "--opt", "adamw").opt, settings("pets", "--opt", "adamw").lr) == ("adamw", 5e-4)
    assert settings("pets", "--opt", "adamw", "--lr", "1e-3").lr == 1e-3
