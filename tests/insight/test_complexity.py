"""Parameters and multiply-accumulates against published and hand-counted figures."""

import csv
import dataclasses
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.insight import complexity
from t2t_vit.insight.complexity import count_cost, count_macs, count_parameters, describe, models
from t2t_vit.insight.config import ModelsConfig

# Parameters with the frozen tables, and GMACs at 224 pixels, of the official networks (None: no figure).
OFFICIAL = {
    "t2t_vit_7": (4_310_222, "1.147"),
    "t2t_vit_10": (5_889_230, "1.516"),
    "t2t_vit_12": (6_941_902, "1.763"),
    "t2t_vit_14": (21_545_550, "4.783"),
    "t2t_vit_19": (39_177_422, "8.480"),
    "t2t_vit_24": (64_105_934, "13.662"),
    "t2t_vit_t_14": (21_541_070, "6.089"),
    "t2t_vit_t_19": (39_172_942, "9.785"),
    "t2t_vit_t_24": (64_101_454, "14.967"),
    "t2t_vit_14_resnext": (21_545_550, None),
    "t2t_vit_14_wide": (25_156_302, None),
    "t2t_vit_14_se": (21_803_598, None),
    "t2t_vit_16_ghost": (16_253_262, None),
    "t2t_vit_dense": (23_647_062, None),
    "t2t_vit_14_conv": (None, "4.6"),
}
# Million activations in timm's results (benchmark-infer-amp-nchw-pt291-cu128-4090.csv), as fvcore counts them.
TIMMS_ACTIVATIONS = {
    "vit_small_patch16_224": 11.95,
    "vit_base_patch16_224": 23.9,
    "vit_wee_patch16_reg1_gap_256": 13.9,
    "resnet50": 11.11,
    "seresnet50": 11.13,
    "densenet201": 7.85,
    "inception_v3": 8.97,
    "vgg11": 7.44,
    "mobilenetv2_100": 6.68,
    "swin_tiny_patch4_window7_224": 17.06,
    "convnext_tiny": 13.44,
}
FEW = ["t2t_vit_7", "t2t_vit_dense", "t2t_vit_7_no_t2t"]


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.slow
def test_official_figures(name):
    parameters, gmacs = OFFICIAL[name]
    row = describe(name)
    assert row.img_size == (224, 224)
    if parameters is not None:
        assert row.parameters == parameters
    if gmacs is not None:
        digits = len(gmacs.partition(".")[2])
        assert f"{row.macs / 1e9:.{digits}f}" == gmacs


class SmallNet(nn.Module):
    """Grouped convolution, fused attention and a linear layer; in training, a second head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.extra = nn.Linear(8, 1000)
        self.register_buffer("pos_embed", torch.zeros(1, 24, 8))

    def forward(self, x):
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, N, 8)
        x = F.scaled_dot_product_attention(tokens, tokens, tokens).squeeze(1) + self.pos_embed
        return self.extra(x) if self.training else self.head(x)


def test_macs_counted_by_hand():
    N = 4 * 6
    convolution, attention, head = N * 8 * (4 // 2) * 9, 2 * N * N * 8, N * 8 * 5
    assert count_macs(SmallNet(), (4, 4, 6)) == convolution + attention + head


def test_activations_counted_by_hand():
    N = 4 * 6
    convolution, attention, head = N * 8, N * N + N * 8, N * 5
    assert count_cost(SmallNet(), (4, 4, 6)).activations == convolution + attention + head


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMMS_ACTIVATIONS)
def test_activations_are_timms(name):
    assert describe(name).cost.activations / 1e6 == pytest.approx(TIMMS_ACTIVATIONS[name], abs=0.0051)


def macs_of_t2t(height, width, out_dim, *, tokens):
    """The T2T module by hand: soft splits, token transformers of width 64 and their parts, the projection."""
    macs, in_chans = 0, 3
    for kernel, stride, padding in ((7, 4, 2), (3, 2, 1)):
        height = (height + 2 * padding - kernel) // stride + 1
        width = (width + 2 * padding - kernel) // stride + 1
        N = height * width
        macs += N * in_chans * kernel**2 * 3 * 64  # queries, keys, values of the unfolded patches
        if tokens == "performer":
            features = 2 * N * 64 * 32
            denominator = N * 32
            macs += features + denominator + 2 * N * 32 * 64
        else:
            macs += 2 * N * N * 64
        macs += N * 64 * 64 + 2 * N * 64 * 64  # projection, MLP
        in_chans = 64
    height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    return macs + height * width * 64 * 9 * out_dim, height * width


def macs_of_backbone(num_tokens, dim, depth, mlp_ratio, num_classes=1000):
    """Attention's products, MLPs and the rest of plain blocks with a head, by hand."""
    products = depth * 2 * num_tokens**2 * dim
    mlps = depth * 2 * num_tokens * dim * int(mlp_ratio * dim)
    return products, mlps, depth * 4 * num_tokens * dim**2 + dim * num_classes


@pytest.mark.parametrize("size", [(224, 224), (96, 176)])
@pytest.mark.parametrize(
    ("name", "tokens", "dim", "depth", "ratio"),
    [
        ("t2t_vit_7", "performer", 256, 7, 2),
        ("t2t_vit_14", "performer", 384, 14, 3),
        ("t2t_vit_t_14", "transformer", 384, 14, 3),
    ],
)
def test_the_parts_of_t2t_counted_by_hand(name, tokens, dim, depth, ratio, size):
    t2t, num_tokens = macs_of_t2t(*size, dim, tokens=tokens)
    products, mlps, others = macs_of_backbone(num_tokens + 1, dim, depth, ratio)
    cost = describe(name, size).cost
    assert (cost.t2t_macs, cost.attention_macs, cost.mlp_macs, cost.other_macs) == (t2t, products, mlps, others)
    assert cost.macs == t2t + products + mlps + others


@pytest.mark.parametrize("size", [(224, 224), (96, 176)])
def test_the_convolutions_of_local_blocks_are_part_of_their_mlps(size):
    plain, local = describe("t2t_vit_7", size).cost, describe("t2t_vit_7_local", size).cost
    outputs = 7 * (size[0] // 16) * (size[1] // 16) * 512
    more = {"macs": plain.macs + 9 * outputs, "mlp_macs": plain.mlp_macs + 9 * outputs}
    assert local == dataclasses.replace(plain, **more, activations=plain.activations + outputs)


@pytest.mark.parametrize("size", [(224, 224), (96, 176)])
def test_the_parts_of_a_vit_counted_by_hand(size):
    num_patches = size[0] // 16 * (size[1] // 16)
    products, mlps, others = macs_of_backbone(num_patches + 1, 384, 12, 4)
    others += num_patches * 3 * 16**2 * 384
    cost = describe("vit_small_patch16_224", size).cost
    assert (cost.t2t_macs, cost.attention_macs, cost.mlp_macs, cost.other_macs) == (0, products, mlps, others)


def test_the_t2t_module_in_another_network_is_part_of_the_rest():
    from t2t_vit import TokensToToken

    t2t, _ = macs_of_t2t(64, 64, 384, tokens="performer")
    cost = count_cost(TokensToToken(), (3, 64, 64))
    assert (cost.macs, cost.t2t_macs) == (t2t, 0)


def test_what_no_library_has_is_a_published_row():
    row = describe("ResNet50-Ghost", 64)
    assert (row.parameters, row.macs, row.img_size) == (19_900_000, 3_200_000_000, (224, 224))
    assert row.cost is row.depth is None
    assert "Published, not counted" in row.note


def test_a_model_of_torchvision():
    row = describe("alexnet")
    assert (row.parameters, round(row.macs / 1e9, 3)) == (61_100_840, 0.714)
    assert describe("alexnet", 128).macs < row.macs


def test_a_difference_is_told_at_the_published_size_only():
    assert "4.09 GMACs counted, 4.9 published" in describe("seresnet50").note
    assert describe("seresnet50", 224).note == describe("seresnet50").note
    assert "published" not in describe("seresnet50", 64).note


def test_attention_is_counted_on_its_plain_path():
    """Before PyTorch 2.15 fused attention counts for nothing."""
    fused = []

    class Probe(SmallNet):
        def forward(self, x):
            fused.append(torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled())
            return super().forward(x)

    count_macs(Probe(), (4, 4, 6))
    assert fused == [False]


def test_counting_leaves_the_model_as_it_was():
    model = SmallNet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, (4, 4, 6))
    assert model.training
    torch.testing.assert_close(model.state_dict(), before)


def test_parameters_trained_and_frozen():
    model = SmallNet()
    convolution, norm, heads, table = 8 * 2 * 9 + 8, 2 * 8, 9 * 5 + 9 * 1000, 24 * 8
    everything = convolution + norm + heads + table  # running statistics are no parameters
    assert count_parameters(model) == (everything - table, everything)
    model.conv.requires_grad_(False)
    assert count_parameters(model) == (everything - table - convolution, everything)


@pytest.mark.slow
def test_models_of_timm():
    resnet = describe("resnet50")
    assert (resnet.parameters, round(resnet.macs / 1e9, 1)) == (25_557_032, 4.1)
    assert resnet.depth is None
    assert describe("resnet18").top1_percent is None
    vit = describe("vit_small_patch16_224")
    assert (vit.embed_dim, vit.depth, vit.num_heads, round(vit.macs / 1e9, 1)) == (384, 12, 6, 4.6)


@pytest.mark.slow
def test_each_models_own_size_unless_told():
    assert describe("t2t_vit_7_64px").img_size == (64, 64)
    assert describe("t2t_vit_14.in1k_384").top1_percent == 83.3
    wide, tall = describe("T2t_vit_7", (64, 96)), describe("t2t_vit_7", (96, 64))
    assert wide.macs == tall.macs == count_macs(timm.create_model("t2t_vit_7", img_size=(64, 96)), (3, 64, 96))
    assert describe("resnet18", 64).macs < describe("resnet18").macs / 10


def test_a_size_that_a_model_cannot_take():
    with pytest.raises(UserError, match=r"levit_128 cannot take images of 20 x 36 pixels"):
        describe("levit_128", (20, 36))


@pytest.fixture
def few_models(monkeypatch):
    """The table of models, cut short."""
    assert set(FEW) < set(complexity.list_models())
    monkeypatch.setattr(complexity, "list_models", lambda: FEW)


def test_the_table_names_every_model(capsys, few_models):
    models(ModelsConfig(names=("resnet18", "T2t_vit_7"), img_size=64))
    printed = capsys.readouterr().out
    assert "…" not in printed
    (dense,) = [line.split() for line in printed.splitlines() if "t2t_vit_dense" in line]
    assert dense[:6] == ["t2t_vit_dense", "performer", "128-584", "19", "8", "64"]
    assert dense[-1] == "80.6"
    starts = [line.split()[0] for line in printed.splitlines() if line.strip()]
    assert [name for name in starts if name in (*FEW, "resnet18")] == [*FEW, "resnet18"]


def test_json_and_csv_hold_the_same(capsys, tmp_path, few_models):
    path = tmp_path / "models.csv"
    models(ModelsConfig(img_size=(32, 48), json=True, csv=str(path)))
    from_json = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    with path.open(newline="") as file:
        from_csv = {row["model"]: row for row in csv.DictReader(file)}
    assert list(from_json) == list(from_csv)
    assert from_csv["t2t_vit_7"]["img_size"] == "32x48"
    assert int(from_csv["t2t_vit_7"]["macs"]) == from_json["t2t_vit_7"]["macs"]
    assert from_csv["t2t_vit_7_no_t2t"]["top1_percent"] == ""
    assert from_json["t2t_vit_7_no_t2t"]["top1_percent"] is None


def test_csv_that_cannot_be_written(tmp_path, few_models):
    with pytest.raises(UserError, match=r"models\.csv could not be written: No such file or directory"):
        models(ModelsConfig(csv=str(tmp_path / "missing" / "models.csv")))
