"""What only torch and timm can judge, and what a run that goes on may change."""

from dataclasses import asdict

import pytest

from t2t_vit.errors import UserError
from t2t_vit.options import configure
from t2t_vit.runtime.files import plain
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.settings import refuse_other_run, refuse_unavailable

SPLIT = {"kind": "given", "num_train": 24, "num_val": 8, "fingerprint": "1f"}
RUN = {"class_names": ["a", "b"], "split": SPLIT, "model": "t2t_vit_7", "precision": "float32"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": "nonsense"}, "Unknown model 'nonsense'"),
        ({"model": "t2t_vit_13"}, "Unknown model 't2t_vit_13'"),
        ({"opt": "adamx"}, "^Unknown optimiser 'adamx'. Did you mean adam"),
        ({"opt": "qqq"}, r"^Unknown optimiser 'qqq'. Known: (\w+, ){9}\w+ and \d+ more\.$"),
        ({"opt": "adahessian"}, "--opt adahessian wants second derivatives"),
        ({"opt": "sgd", "momentum": 0}, r"^--opt sgd cannot be used here: Nesterov momentum requires .*[^.]\.$"),
        ({"opt": "adamw", "momentum": 0.5}, "^--momentum has no effect on --opt adamw.$"),
        ({"aa": "foo"}, "^--aa must be a policy of timm's: rand-m9-mstd0.5-inc1 and the like, .* or 3a, got foo.$"),
        ({"aa": "rand-m1.5"}, "^--aa must be a policy"),
        ({"aa": "rand-m9-zz3", "opt": "qqq"}, "^Unknown optimiser .* --aa must be a policy"),
    ],
)
def test_what_does_not_exist_is_told(given, message):
    with pytest.raises(UserError, match=message):
        refuse_unavailable(configure(TrainConfig, data="folder", **given))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "originalr-mstd0.5", "v0", "augmix-m3", "3a", None])
def test_policies_of_timm_pass(policy):
    refuse_unavailable(configure(TrainConfig, data="folder", aa=policy))


def facts(**settings):
    return {**RUN, "config": plain(asdict(configure(TrainConfig, data="folder", output="out", **settings)))}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": SPLIT | {"num_train": 30}}, "the data has other images: 24 [+] 8 then, 30 [+] 8 now. Leave"),
        ({"class_names": ["a", "c"]}, "the data has other classes: a, b then, a, c now. Leave"),
        (
            {"precision": "bfloat16"},
            "precision was float32, now bfloat16. Leave .*--amp and --no-amp set the precision",
        ),
    ],
)
def test_a_run_that_would_be_another_is_refused(change, told):
    with pytest.raises(UserError, match=f"^The run cannot go on under other settings: {told}"):
        refuse_other_run(facts(), {**facts(), **change})


def test_a_longer_run_is_told_how_to_train_on():
    then, now = (facts(epochs=epochs, warmup_epochs=0, workers=epochs) for epochs in (4, 9))
    with pytest.raises(UserError, match=r": epochs was 4, now 9\. .* in a new run: --checkpoint out/best\.pt, with "):
        refuse_other_run(then, now)
