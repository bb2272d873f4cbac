import argparse
import dataclasses
import http.server
import threading

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from t2t_vit.models.names import VARIANTS


def test_all_are_registered_with_timm():
    assert set(VARIANTS) == set(timm.list_models("t2t_vit*"))


def test_small_presets_keep_8_x_8_tokens():
    for name in ("t2t_vit_7_32px", "t2t_vit_7_64px", "t2t_vit_7_32px_local", "t2t_vit_7_64px_local"):
        assert timm.create_model(name, device="meta").grid_size == (8, 8)


@pytest.fixture
def official_file(tmp_path):
    """A file as the official code writes them, of t2t_vit_7 at 32 pixels and 5 classes."""
    torch.manual_seed(0)
    state = timm.create_model("t2t_vit_7", img_size=32, num_classes=5).state_dict()
    average = {f"module.{key}": value + 1 for key, value in state.items()}
    path = tmp_path / "71.7_T2T_ViT_7.pth.tar"
    torch.save({"state_dict": state, "state_dict_ema": average, "args": argparse.Namespace(lr=1), "epoch": 3}, path)
    return path, {key: value + 1 for key, value in state.items()}


def assert_loaded(model, expected):
    assert model.pos_embed.shape[1] == 10
    assert [
        key for key, value in model.state_dict().items() if key != "pos_embed" and not torch.equal(value, expected[key])
    ] == []


@pytest.fixture
def server(official_file):
    """A web server on this machine that gives the file, and counts how often."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=official_file[0].parent)

        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()


def test_pretrained_downloads_once_into_torch_s_cache(official_file, server, monkeypatch, tmp_path):
    path, average = official_file
    address, requests = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    cfg = dataclasses.replace(get_pretrained_cfg("t2t_vit_7.in1k"), url=f"{address}/{path.name}", num_classes=5)
    for _ in range(2):  # at another size, as a user of released weights would
        model = timm.create_model("t2t_vit_7", pretrained=True, pretrained_cfg=cfg.to_dict(), img_size=48)
        assert_loaded(model, average)
    assert len(requests) == 1
    assert list((tmp_path / "cache").rglob(path.name))


@pytest.mark.parametrize("custom_load", [True, False])
def test_timm_s_own_loading_takes_an_official_file(official_file, custom_load):
    path, average = official_file
    overlay = {"file": str(path), "num_classes": 5, "custom_load": custom_load}
    with torch.serialization.safe_globals([argparse.Namespace]):
        model = timm.create_model("t2t_vit_7", pretrained=True, pretrained_cfg_overlay=overlay, img_size=48)
    assert_loaded(model, average)
    assert (
        timm.create_model("t2t_vit_7", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3).num_classes == 3
    )
