"""Every format of checkpoint, written here and read back; and every kind of file that is none."""

import argparse
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from t2t_vit.errors import UserError
from t2t_vit.models import checkpoint_formats
from t2t_vit.models.checkpoint_formats import read_checkpoint
from t2t_vit.models.names import VARIANTS
from t2t_vit.models.weights import identify

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = ("cls_token", "tokens_to_token.project.weight", "head.weight", "head.bias")


def state(value: float = 1.0, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + key: torch.full((2, 3), value) for key in KEYS}


def save(path: Path, content: Any, **kwargs: Any) -> Path:
    torch.save(content, path, **kwargs)
    return path


def check(path: Path | str, kind: str, value: float = 1.0, use_ema: bool = True) -> checkpoint_formats.Checkpoint:
    checkpoint = read_checkpoint(path, use_ema)
    assert checkpoint.kind == kind
    assert set(checkpoint.state_dict) == set(KEYS)
    assert all(torch.equal(tensor, torch.full((2, 3), value)) for tensor in checkpoint.state_dict.values())
    return checkpoint


# Formats


@pytest.mark.parametrize(("use_ema", "value"), [(True, 2.0), (False, 1.0)])
def test_official(tmp_path: Path, use_ema: bool, value: float) -> None:
    content = {
        "epoch": 299,
        "arch": "T2t_vit_14",
        "state_dict": state(1.0, "module."),
        "state_dict_ema": state(2.0, "module."),
        "args": argparse.Namespace(model="T2t_vit_14", img_size=224),
    }
    checkpoint = check(save(tmp_path / "81.5.pth.tar", content), "official T2T-ViT checkpoint", value, use_ema)
    assert checkpoint.used_ema == use_ema
    assert checkpoint.model == "t2t_vit_14"
    assert checkpoint.extra == {"epoch": 299, "arch": "T2t_vit_14", "args": {"model": "T2t_vit_14", "img_size": 224}}


def test_official_without_ema(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"arch": "mine", "state_dict": state(), "state_dict_ema": None})
    checkpoint = check(path, "official T2T-ViT checkpoint")
    assert not checkpoint.used_ema
    assert checkpoint.model is None  # a name that nobody knows says nothing


def test_official_cifar(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", {"net": state(1.0, "module."), "acc": 98.3, "epoch": 59})
    assert check(path, "official CIFAR checkpoint").extra == {"acc": 98.3, "epoch": 59}


def test_token_labelling(tmp_path: Path) -> None:
    extra = {"aux_head.weight": torch.ones(1), "aux_head.bias": torch.ones(1)}
    checkpoint = read_checkpoint(save(tmp_path / "84.2.pth.tar", {"state_dict_ema": {**state(), **extra}}))
    assert checkpoint.kind == "token-labelling checkpoint"
    assert list(checkpoint.state_dict) == [*KEYS, *extra]


def test_both_wrappers_in_either_order(tmp_path: Path) -> None:
    check(save(tmp_path / "a.pth", {"model": state(1.0, "module._orig_mod.")}), "official T2T-ViT checkpoint")
    check(save(tmp_path / "b.pth", {"model": state(1.0, "_orig_mod.module.")}), "official T2T-ViT checkpoint")


def mmpretrain_shapes(name: str) -> dict[str, list[int]]:
    keys = json.loads((GOLDEN / "mmpretrain_keys.json").read_text())[name]
    blocks = {
        f"backbone.encoder.{i}.{key}": shape for i in range(keys["depth"]) for key, shape in keys["block"].items()
    }
    return {**keys["others"], **blocks}


def mmpretrain_state(name: str, value: float = 1.0) -> dict[str, Tensor]:
    """Tensors of an mmpretrain file; a single number each in memory."""
    return {key: torch.full((1,) * len(shape), value).expand(shape) for key, shape in mmpretrain_shapes(name).items()}


@pytest.mark.parametrize("name", ["t2t_vit_t_14", "t2t_vit_t_19"])
def test_mmpretrain(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "mm.pth", {"meta": {"mmpretrain_version": "1.2.0"}, "state_dict": mmpretrain_state(name)})
    checkpoint = read_checkpoint(path)
    assert checkpoint.kind == "mmpretrain checkpoint"
    assert identify(checkpoint.state_dict) == [name]
    assert checkpoint.state_dict["head.weight"].shape[0] == 1000
    assert checkpoint.extra == {"meta": {"mmpretrain_version": "1.2.0"}}


@pytest.mark.parametrize(("use_ema", "value"), [(True, 2.0), (False, 1.0)])
def test_mmengine_swaps_the_average_when_it_saves(tmp_path: Path, use_ema: bool, value: float) -> None:
    raw = {f"module.{key}": tensor for key, tensor in mmpretrain_state("t2t_vit_t_14", 1.0).items()}
    content = {"state_dict": mmpretrain_state("t2t_vit_t_14", 2.0), "ema_state_dict": {**raw, "steps": torch.tensor(3)}}
    checkpoint = read_checkpoint(save(tmp_path / "mm.pth", content), use_ema)
    assert checkpoint.used_ema == use_ema
    assert checkpoint.state_dict["head.bias"][0] == value


OURS = {
    "model": "t2t_vit_7",
    "model_args": {"num_classes": 2, "img_size": [64, 96]},
    "class_names": ["cat", "dog"],
    "data_config": {"input_size": [3, 64, 96], "mean": [0.5, 0.5, 0.5]},
}


@pytest.mark.parametrize(("use_ema", "value"), [(True, 2.0), (False, 1.0)])
def test_ours(tmp_path: Path, use_ema: bool, value: float) -> None:
    content = {"format": "t2t_vit", "version": 1, **OURS, "epoch": 3}
    path = save(tmp_path / "best.pt", {**content, "state_dict": state(1.0), "state_dict_ema": state(2.0)})
    checkpoint = check(path, "t2t_vit checkpoint", value, use_ema)
    assert {key: getattr(checkpoint, key) for key in OURS} == OURS
    assert checkpoint.extra == {"format": "t2t_vit", "version": 1, "epoch": 3}


def test_ours_of_a_newer_version(tmp_path: Path) -> None:
    path = save(tmp_path / "best.pt", {"format": "t2t_vit", "version": 2, "state_dict": state()})
    with pytest.raises(UserError, match=r"best.pt is of version 2 of our format, this t2t-vit reads 1: upgrade it\."):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_bare_state_dict(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "a.pth", state(), _use_new_zipfile_serialization=zipped)
    assert check(path, "bare state dict").extra == {}


def test_safetensors(tmp_path: Path) -> None:
    save_file(state(1.0, "module."), tmp_path / "named_as_you_like.bin")
    check(tmp_path / "named_as_you_like.bin", "safetensors file")


def test_safetensors_with_our_metadata(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.safetensors", metadata={"t2t_vit": json.dumps({"version": 1, **OURS})})
    checkpoint = check(tmp_path / "a.safetensors", "t2t_vit checkpoint")
    assert {key: getattr(checkpoint, key) for key in OURS} == OURS


HUB_CONFIG = {
    "architecture": "t2t_vit_7",
    "num_classes": 2,
    "model_args": {"img_size": [64, 96]},
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "crop_pct": 0.9, "license": "apache-2.0"},
}


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_hub_folder(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    if file == "model.safetensors":
        save_file(state(), tmp_path / file)
    else:
        save(tmp_path / file, state())
    checkpoint = check(tmp_path, "timm hub folder")
    assert (checkpoint.path, checkpoint.model) == (str(tmp_path), "t2t_vit_7")
    assert checkpoint.model_args == {"img_size": [64, 96], "num_classes": 2}
    assert checkpoint.class_names == ["cat", "dog"]
    assert checkpoint.data_config == {"mean": [0.5, 0.5, 0.5], "crop_pct": 0.9}


def test_a_folder_of_a_run_means_its_best_weights(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", {"format": "t2t_vit", "version": 1, **OURS, "state_dict": state(2.0)})
    best = save(tmp_path / "best.pt", {"format": "t2t_vit", "version": 1, **OURS, "state_dict": state(1.0)})
    assert check(tmp_path, "t2t_vit checkpoint").path == str(best)


# Files that are none


def write_image(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "PNG")


def write_cut_zip(path: Path) -> None:
    whole = save(path, {"a": torch.ones(1000)}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_cut_pickle(path: Path) -> None:
    whole = save(path, {"a": torch.ones(1000)}, _use_new_zipfile_serialization=False).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_cut_safetensors(path: Path) -> None:
    save_file({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])


def write_exported_program(path: Path) -> None:
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(1),))
    torch.export.save(program, path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))


def write_other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/readme.txt", "hello")


UNREADABLE = "{} is no checkpoint, or is cut off or damaged: expected a state dict written by torch.save (.pt, .pth, "


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), UNREADABLE),
        (write_image, UNREADABLE),
        (lambda path: path.write_text("epoch,loss\n1,2.3\n"), UNREADABLE),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"), UNREADABLE),
        (write_tar, UNREADABLE),
        (write_cut_zip, UNREADABLE),
        (write_cut_pickle, UNREADABLE),
        (write_cut_safetensors, UNREADABLE),
        (write_other_zip, UNREADABLE),
        (write_exported_program, UNREADABLE),
        (lambda path: save(path, [torch.ones(1)]), "{} is no checkpoint: expected a state dict, found a list."),
        (
            lambda path: save(path, {"epoch": 3, "weights": {"a": torch.ones(1)}}),
            "{} is no checkpoint: it holds no tensors, neither at the top nor under state_dict_ema, model_ema, "
            "state_dict, model, net, only epoch, weights.",
        ),
        (lambda path: None, "No checkpoint at {}: there is no such file or folder."),
        (Path.mkdir, "No checkpoint in the folder {}: expected a best.pt, or a config.json beside a model.safetensors"),
    ],
)
def test_no_checkpoint(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / "model.pth"
    write(path)
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(message.format(path))


@pytest.mark.parametrize("config", ["{", '{"model_args": {}}'])
def test_a_config_that_is_not_timms(tmp_path: Path, config: str) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"The config\.json in .* is not timm's: .*(Expecting property|architecture)"):
        read_checkpoint(tmp_path)


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": state(), "extra": Code()}
    path = save(tmp_path / "evil.pth", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.pth was refused: it needs posix\.mkdir, and unpickling that may run"):
        read_checkpoint(path)
    assert not Path("ran").exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it needs torch\.nn\.modules\.linear\.Linear, .* save the state dict alone"):
        read_checkpoint(save(tmp_path / "module.pth", torch.nn.Linear(2, 2)))


# URLs


def cached(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hub").rglob("*.*"))


def test_url_is_downloaded_once_with_progress(tmp_path: Path, site: Any, capfd: pytest.CaptureFixture[str]) -> None:
    site.files["/run/best.pt"] = save(tmp_path / "a.pth", {"state_dict": state()}).read_bytes()
    for _ in range(2):
        checkpoint = check(f"{site.url}/run/best.pt", "official T2T-ViT checkpoint")
    assert checkpoint.path == f"{site.url}/run/best.pt"
    assert site.requests == ["/run/best.pt"]
    told = capfd.readouterr().err
    assert told.startswith(f"Downloading {site.url}/run/best.pt\n")
    assert "100%" in told
    assert told.count("Downloading") == 1
    assert [path.parent for path in cached(tmp_path)] == [tmp_path / "hub" / "checkpoints"]


def test_urls_that_end_alike_are_told_apart(tmp_path: Path, site: Any) -> None:
    for run in (1, 2):
        site.files[f"/{run}/best.pt"] = save(tmp_path / "a.pth", state(run)).read_bytes()
    for run in (1, 2):
        check(f"{site.url}/{run}/best.pt", "bare state dict", run)


def test_released_files_share_timms_cache(tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_formats, "RELEASES", f"{site.url}/main/")
    weights = VARIANTS["t2t_vit_7"].weights[0]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    save(tmp_path / "hub" / "checkpoints" / weights.file, state())  # as timm has left it there
    check(f"{site.url}/main/{weights.file}", "bare state dict")
    assert site.requests == []


def test_url_that_is_not_there(tmp_path: Path, site: Any) -> None:
    with pytest.raises(UserError, match=rf"checkpoint at {site.url}/x\.pth could not be downloaded: HTTP Error 404"):
        read_checkpoint(f"{site.url}/x.pth")
    assert cached(tmp_path) == []


def test_server_that_is_not_there(tmp_path: Path, site: Any) -> None:
    with pytest.raises(UserError, match=r"The checkpoint at http://127\.0\.0\.1:1/x\.pth could not be downloaded: "):
        read_checkpoint("http://127.0.0.1:1/x.pth")


@pytest.mark.parametrize("name", ["/cut.pth", "/page.pth"])
def test_broken_download_does_not_stay(tmp_path: Path, site: Any, name: str) -> None:
    whole = save(tmp_path / "a.pth", state()).read_bytes()
    site.files[name] = whole[:-100] if name == "/cut.pth" else b"<html>Please log in</html>"
    with pytest.raises(UserError, match=f"^{site.url}{name} is no checkpoint, .* in the cache was removed"):
        read_checkpoint(site.url + name)
    assert cached(tmp_path) == []
