import json
import re
import shutil

import numpy as np
import pytest
import torch

import t2t_vit
from t2t_vit.cli import main
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError
from t2t_vit.inference.config import EvalConfig
from t2t_vit.inference.evaluate import evaluate_command, measure_accuracy
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import find_machine
from t2t_vit.training.train import run_training


@pytest.fixture(scope="module")
def trained(tiny_config_in, tmp_path_factory):
    return run_training(tiny_config_in(tmp_path_factory.mktemp("trained") / "run", epochs=1))


def run_eval(data, checkpoint, capsys, **changes):
    capsys.readouterr()
    evaluate_command(EvalConfig(data=str(data), checkpoint=str(checkpoint), workers=0, **changes))
    return capsys.readouterr().out


def test_eval_finds_what_training_found(trained, picture_folder, capsys):
    output = run_eval(picture_folder, trained.output / "best.pt", capsys)
    assert output.splitlines()[-1] == f"Top-1 accuracy of the model is: {trained.best_top1:.1f}%"
    assert re.search(r"8 images on cpu, float32: loss \d\.\d{4}, top-5 100\.00 %", output)


def test_eval_of_the_raw_weights(trained, picture_folder, capsys):
    output = run_eval(picture_folder, trained.output / "last.pt", capsys, use_ema=False)
    assert output.splitlines()[-1].endswith(f"{trained.metrics[-1]['val_top1']:.1f}%")


def test_eval_at_another_size_says_that_positions_were_resampled(trained, picture_folder, capsys):
    assert "changed: positions" in run_eval(picture_folder, trained.output / "best.pt", capsys, img_size=48)


def test_unreadable_images_are_refused_unless_told(trained, picture_folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(picture_folder, broken)
    for path in sorted(broken.glob("val/*/*.png"))[:6]:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"6 of 8 .* be read: val/lying/0.png .* and 1 more\. .* --skip-unreadable"):
        run_eval(broken, trained.output / "best.pt", capsys)
    output = run_eval(broken, trained.output / "best.pt", capsys, skip_unreadable=True)
    assert "2 images on cpu" in output
    assert "6 unreadable left out" in output
    numbers = json.loads(run_eval(broken, trained.output / "best.pt", capsys, skip_unreadable=True, json=True))
    assert (numbers["num_images"], numbers["num_unreadable"]) == (2, 6)


def test_another_class_count_and_other_names_are_refused(trained, picture_folder, tmp_path, capsys):
    with pytest.raises(UserError, match=r"tells 2 classes apart, .*digits has 10"):
        run_eval("digits", trained.output / "best.pt", capsys)
    renamed = tmp_path / "renamed"
    shutil.copytree(picture_folder / "val", renamed)
    (renamed / "lying").rename(renamed / "flat")
    with pytest.raises(UserError, match=r"are not the checkpoint's: 'flat' for 'lying'"):
        run_eval(renamed, trained.output / "best.pt", capsys)


def test_from_python_silently(trained, picture_folder, capsys):
    capsys.readouterr()
    found = t2t_vit.evaluate(str(picture_folder), checkpoint=str(trained.output / "best.pt"), workers=0)
    assert capsys.readouterr().out == ""
    assert found.top1 == pytest.approx(trained.best_top1)
    known = {"top1": found.top1, "top5": 100.0, "loss": found.loss, "num_images": 8, "num_unreadable": 0}
    of_classes = {"recalls": list(found.recalls), "balanced": sum(found.recalls) / 2}
    assert found.metrics == known | of_classes | {"calibration_error": found.calibration_error}


def test_as_json(trained, picture_folder, capsys):
    capsys.readouterr()
    words = ["eval", str(picture_folder), "--checkpoint", str(trained.output / "best.pt"), "-j", "0", "--json"]
    assert main(words) == 0
    printed = capsys.readouterr()
    found = t2t_vit.evaluate(str(picture_folder), checkpoint=str(trained.output / "best.pt"), workers=0)
    assert json.loads(printed.out) == found.metrics
    assert "Loaded " in printed.err


def test_every_image_counts_once_and_the_mode_is_restored(trained, picture_folder):
    predictor = Predictor(trained.output / "best.pt", device="cpu")
    predictor.network.train()
    val = open_source(str(picture_folder)).val
    for batch_size in (3, 8):
        loader = evaluation_loader(
            val, predictor.data_config, batch_size=batch_size, machine=predictor.machine, workers=0
        )
        found = measure_accuracy(predictor, loader, Display())
        assert found.num_images == 8
        assert found.top1 == pytest.approx(trained.best_top1)
    assert predictor.network.training


def test_float16_is_taken_when_asked():
    assert find_machine("cpu", amp=True, amp_dtype="float16").amp_dtype == torch.float16
    assert find_machine("cpu", amp_dtype="float16").amp_dtype == torch.float16
    assert find_machine("cpu", amp=False).amp_dtype is None


@pytest.mark.slow
def test_channels_are_measured_kept_and_used(tiny_config, tmp_path):
    """Four channels that differ in the last alone, which ImageNet's statistics would not bring to a usable range."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("dim", "bright")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (36, 40, 4)).astype(np.uint16)
                pixels[..., 3] += 100 * label
                np.save(tmp_path / part / name / f"{i}.npy", pixels)
    result = run_training(tiny_config(data=str(tmp_path), in_chans=4, output=str(tmp_path / "run"), epochs=3, lr=1e-3))
    assert result.best_top1 == 100
    contents = torch.load(result.output / "best.pt", weights_only=True)
    assert contents["model_args"]["in_chans"] == contents["data_config"]["input_size"][0] == 4
    assert contents["data_config"]["mean"] == pytest.approx([*[29.5 / 65535] * 3, 79.5 / 65535], rel=0.02)
    assert (result.output / "report.html").is_file()
    assert t2t_vit.evaluate(str(tmp_path), checkpoint=str(result.output), workers=0).top1 == 100
    predictor = Predictor(result.output, device="cpu")
    assert predictor(str(tmp_path / "val/dim/0.npy"), top_k=1).labels[0][0] == "dim"


@pytest.mark.slow
def test_a_grey_network_starts_from_a_coloured_one(trained, tiny_config, picture_folder, tmp_path):
    config = tiny_config(checkpoint=str(trained.output), in_chans=1, epochs=1, output=str(tmp_path / "grey"))
    result = run_training(config)
    (mean,) = torch.load(result.output / "best.pt", weights_only=True)["data_config"]["mean"]
    assert 0.1 < mean < 0.3  # these images are dark; ImageNet's mean is 0.45
    found = t2t_vit.evaluate(str(picture_folder), checkpoint=str(result.output), workers=0)
    assert found.top1 == pytest.approx(result.best_top1)


@pytest.mark.slow
def test_the_background_is_kept(tiny_config, picture_folder, tmp_path, monkeypatch):
    result = run_training(tiny_config(background="#102030", epochs=1))
    seen = []
    rgb = PixelFormat.rgb
    monkeypatch.setattr(PixelFormat, "rgb", lambda self, image: seen.append(self.background) or rgb(self, image))
    data, checkpoint = str(picture_folder), str(result.output)
    assert t2t_vit.evaluate(data, checkpoint=checkpoint, workers=0).top1 == pytest.approx(result.best_top1)
    assert set(seen) == {"#102030"}
    seen.clear()
    t2t_vit.evaluate(data, checkpoint=checkpoint, workers=0, background="red")
    assert set(seen) == {"red"}
