"""What `compare` lists without data, with a measurement that only answers."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from t2t_vit.errors import UserError
from t2t_vit.experiments import costs as module
from t2t_vit.experiments.compare import compare
from t2t_vit.experiments.config import CompareConfig
from t2t_vit.experiments.costs import LOOKS
from t2t_vit.insight.complexity import describe
from t2t_vit.insight.published import COMPARED
from t2t_vit.models.names import list_models
from t2t_vit.options import configure
from t2t_vit.speed.turns import Outcome, Round

DOCUMENTED = Path(__file__).parents[2] / "docs/results.md"
MODELS = ("T2t_vit_7", "alexnet", "ViT-S/16", "resnet18", "mobilenetv2_100")


def table_of(folder):
    with (folder / "comparison.csv").open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def listed(text):
    return [line.split()[0] for line in text.splitlines() if line.strip()]


@pytest.fixture
def measured(monkeypatch):
    """The contenders that were measured together; the one without a rival fails."""
    groups = []

    def measure(contenders, *, device, rounds, seconds):
        groups.append(contenders)
        return [
            Outcome(one, error="out of memory")
            if one.name == "resnet18"
            else Outcome(one, rounds=[Round(speed, 1) for speed in (90.0, 100.0, 120.0)])
            for one in contenders
        ]

    monkeypatch.setattr(module, "measure", measure)
    return groups


def test_every_network_is_listed_unless_some_are_named(capsys, monkeypatch):
    assert set(list_models()) < set(COMPARED)
    few = {name: COMPARED[name] for name in ("t2t_vit_7", "ResNet50-Ghost")}
    monkeypatch.setattr(module, "COMPARED", few)
    compare(configure(CompareConfig))
    assert set(few) < set(listed(capsys.readouterr().out))
    compare(configure(CompareConfig, models=("T2t_vit_7_64px",)))
    printed = listed(capsys.readouterr().out)
    assert "t2t_vit_7_64px" in printed
    assert not set(few) & set(printed)


def test_the_csv_has_timms_columns_and_parts_that_add_up(tmp_path, capsys):
    compare(configure(CompareConfig, models=MODELS, output=tmp_path / "new" / "costs"))
    rows = table_of(tmp_path / "new" / "costs")
    assert list(rows) == ["t2t_vit_7", *MODELS[1:]]
    ours = rows["t2t_vit_7"]
    timms = ("img_size", "top1", "infer_img_size", "source", "published_param_count", "published_gmacs")
    assert [ours[name] for name in timms] == ["224", "71.7", "224", "counted", "4.3", "1.1"]
    assert float(ours["param_count"]) == 4.310222
    for row in rows.values():
        if row["source"] == "counted":
            parts = sum(float(row[f"{part}_gmacs"]) for part in ("t2t", "attention", "mlp", "other"))
            assert parts == pytest.approx(float(row["infer_gmacs"]), abs=1e-9)
            assert float(row["infer_macts"]) > 0
    assert "infer_samples_per_sec" not in ours
    vit = rows["ViT-S/16"]
    assert (vit["source"], vit["param_count"], vit["infer_gmacs"], vit["infer_macts"]) == (
        "published", "48.6", "10.1", "",
    )  # fmt: skip
    assert rows["resnet18"]["top1"] == ""
    assert str(tmp_path / "new" / "costs" / "comparison.csv") in capsys.readouterr().out


def test_the_markdown_has_a_row_for_each_and_the_notes_below(tmp_path):
    compare(configure(CompareConfig, models=MODELS, output=tmp_path))
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("`")[1] for line in table[2:]] == ["t2t_vit_7", *MODELS[1:]]
    notes = {line.partition(". ")[0]: line for line in lines if line[:1].isdigit()}
    number_of_vit = next(line for line in table if "ViT-S" in line).split("|")[-2].strip()
    assert "neither timm nor torchvision has it" in notes[number_of_vit]


@pytest.mark.slow
def test_the_documented_table_is_what_is_counted(tmp_path):
    compare(configure(CompareConfig, output=tmp_path))
    table = (tmp_path / "comparison.md").read_text()
    assert table in DOCUMENTED.read_text(), "run: t2t-vit compare --output costs"


def test_the_picture_leaves_out_what_lies_far_below_and_says_so(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "t2t_vit.pictures.scatter.accuracy_figure", lambda *args, note: drawn.update(args=args, note=note)
    )
    compare(configure(CompareConfig, models=MODELS, output=tmp_path))
    series, titles, _ = drawn["args"]
    points = {point.label: point for one in series for point in one.points}
    assert set(points) == {"T2T-ViT-7", "ViT-S/16*", "MobileNetV2"}
    assert titles == ["GMACs", "million parameters"]
    assert points["ViT-S/16*"].costs == {"GMACs": 10.1, "million parameters": 48.6}
    assert "not drawn: AlexNet 56.5 %" in drawn["note"]
    assert "published, not counted" in drawn["note"]


def test_no_picture_of_networks_without_published_accuracy(tmp_path, capsys):
    compare(configure(CompareConfig, models=("resnet18",), output=tmp_path))
    assert not (tmp_path / "comparison.png").exists()
    assert "Picture" not in capsys.readouterr().out


def test_measured_speeds_stand_in_table_and_picture(tmp_path, capsys, measured):
    settings = {"models": MODELS, "img_size": 96, "batch_size": 7, "device": "cpu", "output": tmp_path}
    compare(configure(CompareConfig, measure=True, **settings))
    (group,) = measured
    assert [one.name for one in group] == ["t2t_vit_7", "alexnet", "resnet18", "mobilenetv2_100"]
    assert {(one.input_size, one.batch_size, one.mode, one.precision) for one in group} == {
        ((3, 96, 96), 7, "infer", "float32")
    }
    assert group[1].build().classifier[-1].out_features == 1000  # torchvision's
    rows = table_of(tmp_path)
    assert [row["infer_samples_per_sec"] for row in rows.values()] == ["100.0", "100.0", "", "", "100.0"]
    assert {row["infer_batch_size"] for row in rows.values()} == {"7"}
    assert [rows[name]["infer_img_size"] for name in ("alexnet", "ViT-S/16")] == ["96", "224"]
    printed = capsys.readouterr().out
    assert "batch size 7" in printed
    assert "resnet18 failed: out of memory." in printed
    with Image.open(tmp_path / "comparison.png") as image:
        assert image.height > image.width  # a second row, for images per second


def test_many_are_measured_a_few_at_a_time(capsys, measured, monkeypatch):
    monkeypatch.setattr(module, "CONTENDERS_AT_A_TIME", 2)
    compare(configure(CompareConfig, models=("t2t_vit_7", "alexnet", "mobilenetv2_100"), img_size=64, measure=True))
    assert [len(group) for group in measured] == [2, 1]
    assert "measuring 3 to 3 of 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_measurement(tmp_path):
    compare(configure(CompareConfig, models=("alexnet",), img_size=64, measure=True, batch_size=1, output=tmp_path))
    assert float(table_of(tmp_path)["alexnet"]["infer_samples_per_sec"]) > 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"models": ("t2t_vit_13",)}, r"^Unknown model 't2t_vit_13'\. Did you mean t2t_vit_1"),
        ({"models": ("levit_128",), "img_size": (20, 36)}, "levit_128 cannot take images of 20 x 36 pixels"),
        ({"batch_size": 8}, "batch_size has no effect without DATA or --measure"),
        ({"device": "cuda"}, "device has no effect without DATA or --measure"),
        ({"data": "digits", "measure": True}, "measure has no effect beside DATA digits"),
    ],
)
def test_mistakes_are_told(settings, told):
    with pytest.raises(UserError, match=told):
        compare(configure(CompareConfig, **settings))


def test_an_output_that_is_a_file_is_told_before_anything_is_counted(tmp_path, monkeypatch):
    monkeypatch.delattr(module, "describe")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be written: File exists"):
        compare(configure(CompareConfig, models=("alexnet",), output=tmp_path / "file"))


def test_every_family_has_its_look():
    assert {published.family for published in COMPARED.values()} == set(LOOKS)


def test_counting_allocates_no_weights(monkeypatch):
    networks, build = [], module.build

    def spy(*args):
        networks.append(build(*args))
        return networks[-1]

    monkeypatch.setattr("t2t_vit.insight.complexity.build", spy)
    for name in ("vit_large_patch16_224", "alexnet", "t2t_vit_24"):
        describe(name)
    assert {parameter.device.type for network in networks for parameter in network.parameters()} == {"meta"}
