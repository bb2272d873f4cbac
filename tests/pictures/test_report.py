"""What the report of a run says, read as a browser would."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.loading import Batch
from t2t_vit.data.sources import open_source
from t2t_vit.data.transforms import Normalize, eval_transform
from t2t_vit.inference.evaluate import evaluation_loader
from t2t_vit.models.weights import build_model
from t2t_vit.pictures import report
from t2t_vit.pictures.report import Prediction, RunSummary, page, predict, write_report
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import Machine, find_machine
from t2t_vit.training.loop import train

EMPTY_TAGS = ("meta", "link", "img", "br")


class Element(SimpleNamespace):
    """A tag, what stands in it, and its attributes."""

    def all(self, tag, **attributes):
        """The elements of a tag below this one, those with these attributes."""
        below = [found for child in self.children for found in (child, *child.all("*"))]
        return [
            found
            for found in below
            if tag in ("*", found.tag) and all(found.attributes.get(key) == attributes[key] for key in attributes)
        ]

    def text(self):
        return " ".join("".join(self.all_text()).split())

    def all_text(self):
        return [part for piece in self.pieces for part in (piece.all_text() if isinstance(piece, Element) else [piece])]


class Reader(HTMLParser):
    """A tree of a page whose tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open = [Element(tag="page", attributes={}, children=[], pieces=[])]

    def handle_starttag(self, tag, attrs):
        element = Element(tag=tag, attributes={key.replace("class", "kind"): value for key, value in attrs})
        element.children, element.pieces = [], []
        self.open[-1].children.append(element)
        self.open[-1].pieces.append(element)
        if tag not in EMPTY_TAGS:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY_TAGS:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].pieces.append(data)


def read(text):
    """The page as a tree. It is well-formed and asks nothing of the network."""
    reader = Reader()
    reader.feed(text)
    (tree,) = reader.open
    assert tree.all("script") == []
    for element in tree.all("*"):
        assert not [key for key in element.attributes if key.startswith("on")]
        for key in ("src", "href"):
            assert element.attributes.get(key, "data:").startswith("data:")
    for style in tree.all("style"):
        assert "url(" not in style.text()
        assert "@import" not in style.text()
    return tree


def images_of(labels, *, size=(40, 30), names=None, unreadable=()):
    def load(index):
        if index in unreadable:
            raise UnreadableImage("x", "gone")
        return Image.new("RGB", size, (index, 0, 0))

    return ImageSet(names or [f"val/{index}.png" for index in range(len(labels))], labels, load)


def rows_of(*top1, ema=True, loss=0.5):
    return [
        {"epoch": epoch, "train_loss": 2 * loss, "val_loss": loss, "val_top1": value, "images_per_second": 5.0}
        | {"elapsed_s": 60.0 * (epoch + 1), "data_wait_percent": 20.0 * epoch, "device_wait_percent": 60.4}
        | ({"ema_top1": value - 1} if ema else {})
        for epoch, value in enumerate(top1)
    ]


def page_of(labels, predicted, *, class_names=None, probabilities=None, metrics=None, **about):
    """The page of a run that predicted these labels."""
    probabilities = probabilities or [0.9] * len(labels)
    predictions = [
        Prediction(index, labels[index], predicted[index], probabilities[index], in_top5=True)
        for index in range(len(predicted))
    ]
    class_names = class_names or [f"class {label}" for label in range(max(labels) + 1)]
    images = about.pop("images", None) or images_of(labels, **about)
    metrics = metrics or rows_of(50.0, 90.0)
    summary = RunSummary("title", "about", metrics, len(metrics) - 1, images, class_names)
    return read(page(summary, predictions))


def section(tree, title):
    (found,) = [part for part in tree.all("section") if part.all("h2")[0].text() == title]
    return found


def cells_of(tree):
    """The matrix as the titles of its cells tell it."""
    (matrix,) = [svg for svg in tree.all("svg") if svg.attributes.get("kind", "").startswith("matrix")]
    titles = [title.text() for title in matrix.all("title")]
    found = [re.fullmatch(r"(.*) taken for (.*): ([\d,]+)", title).groups() for title in titles]
    return {(label, predicted): int(count.replace(",", "")) for label, predicted, count in found}


# In a run


def test_a_run_ends_with_its_report(tiny_config, capsys):
    trained = train(tiny_config())
    tree = read((trained.output / "report.html").read_text(encoding="utf-8"))
    tiles = {tile.all("dt")[0].text(): tile.all("dd")[0].text() for tile in tree.all("dl")[0].children}
    wrong = round(8 * (1 - trained.best_top1 / 100))
    assert tiles["top-1"] == f"{trained.best_top1:.2f} % {wrong} of 8 images wrong"
    best = max(trained.metrics, key=lambda row: row["ema_top1"])
    assert tiles["best epoch"] == f"{best['epoch'] + 1} of 2"
    assert sum(cells_of(tree).values()) == 8
    assert len(section(tree, "Most confident mistakes").all("img")) == wrong
    assert len(section(tree, "Accuracy of each class").all("li")) == 2
    assert f"report: {trained.output / 'report.html'}" in capsys.readouterr().out


def test_what_goes_wrong_is_told_and_the_run_is_safe(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr(report, "build_model", lambda path: (_ for _ in ()).throw(RuntimeError("out of memory")))
    result = train(tiny_config())
    assert len(result.metrics) == 2
    assert not (result.output / "report.html").exists()
    output = capsys.readouterr().out
    assert f"warning: {result.output / 'report.html'} is not written: RuntimeError: out of memory" in output
    assert "best top-1" in output.splitlines()[-1]


def test_predictions_are_those_of_the_network(tiny_config, picture_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(picture_folder, folder)
    (folder / "val/lying/1.png").write_bytes(b"no image")
    output = train(tiny_config(data=str(folder), epochs=1)).output
    model, checkpoint = build_model(output / "best.pt")
    val, machine = open_source(str(folder)).val, find_machine("cpu", amp=False)
    loader = evaluation_loader(val, checkpoint.data_config, batch_size=3, machine=machine, workers=0)
    found = predict(output / "best.pt", loader, machine, Display())

    transform = eval_transform(checkpoint.data_config)
    readable = [index for index in range(8) if index != 1]
    with torch.inference_mode():
        images = torch.stack([transform(val.load(index)) for index in readable])
        logits = model.eval()(Normalize(checkpoint.data_config, machine.device)(images))
    expected = logits.double().exp() / logits.double().exp().sum(dim=1, keepdim=True)
    assert [prediction.image_index for prediction in found] == readable
    assert [prediction.label for prediction in found] == [0, 0, 0, 1, 1, 1, 1]
    assert [prediction.predicted for prediction in found] == expected.argmax(dim=1).tolist()
    torch.testing.assert_close(
        torch.tensor([prediction.probability for prediction in found], dtype=torch.float64),
        expected.amax(dim=1), atol=1e-5, rtol=0,
    )  # fmt: skip
    assert all(prediction.in_top5 for prediction in found)  # of two classes


def test_the_class_may_be_among_the_five_likeliest(monkeypatch):
    logits = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]).repeat(3, 1)
    model = SimpleNamespace(to=lambda device: SimpleNamespace(eval=lambda: lambda images: logits))
    monkeypatch.setattr(report, "build_model", lambda path: (model, None))
    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 4, 5]), torch.arange(3), [])
    found = predict(Path("best.pt"), [batch], find_machine("cpu", amp=False), Display())
    assert [(prediction.is_right, prediction.in_top5) for prediction in found] == [
        (True, True), (False, True), (False, False),
    ]  # fmt: skip


class FakeProcess(Machine):
    """One of two processes, beside which the other one found this."""

    def gather(self, value):
        values = [value, FakeProcess.other_found]
        return values if self.rank == 0 else values[::-1]


@pytest.fixture
def run_of_two(monkeypatch, tmp_path, capsys):
    """Writes a report as one of two processes; returns the page, or None, and what is printed."""

    def write(rank, other_found):
        mine = [Prediction(index, 0, 0, 0.9, True) for index in (0, 2)]
        monkeypatch.setattr(report, "predict", lambda *args: mine)
        monkeypatch.setattr(FakeProcess, "other_found", other_found, raising=False)
        summary = RunSummary("title", "about", rows_of(50.0), 0, images_of([0, 1, 0, 1]), ["a", "b"])
        machine = FakeProcess(find_machine("cpu").device, None, rank, world_size=2)
        display = Display(silent=rank > 0)
        path = tmp_path / "report.html"
        write_report(path, Path("best.pt"), [], summary, machine=machine, display=display)
        return path.read_text() if path.exists() else None, capsys.readouterr().out

    return write


def test_several_processes_make_one_report(run_of_two):
    others = [Prediction(index, 1, 0, 0.9, True) for index in (1, 3)]
    written, _ = run_of_two(0, others)
    assert cells_of(read(written)) == {("a", "a"): 2, ("b", "a"): 2}


def test_the_other_processes_write_and_say_nothing(run_of_two):
    assert run_of_two(1, []) == (None, "")


def test_a_failure_in_another_process_is_told(run_of_two):
    written, said = run_of_two(0, "OSError: gone")
    assert written is None
    assert "is not written: OSError: gone" in said


# The page


def test_the_speed_is_told_with_what_the_time_of_the_last_epoch_went_to():
    tiles = page_of([0, 1], [1, 0]).all("dl")[0].children
    assert [tile.text() for tile in tiles[-2:]] == [
        "time2:00 evaluations included", "images a second5 data wait 20 %, device wait 60 %",
    ]  # fmt: skip


def test_names_are_shown_as_they_are_and_run_nothing():
    names = ['<script>alert("1")</script>', "a & 'b' <img src=http://x>"]
    files = [f"val/{name}/\udcff.png" for name in names]
    tree = page_of([0, 1], [1, 0], class_names=names, names=files)
    assert cells_of(tree) == {(names[0], names[1]): 1, (names[1], names[0]): 1}
    first = section(tree, "Most confident mistakes").all("img")[0]
    assert first.attributes["alt"] == f"val/{names[0]}/?.png: taken for {names[1]} with 90 %, is {names[0]}"
    assert [name.text() for name in tree.all("span", kind="name")] == names


def test_pictures_have_words_for_those_who_do_not_see_them():
    tree = page_of([0, 1, 1], [1, 1, 1])
    assert all(image.attributes["alt"] for image in tree.all("img"))
    charts = [svg.attributes for svg in tree.all("svg")]
    assert all(attributes["role"] == "img" for attributes in charts)
    assert charts[0]["aria-label"] == (
        "Top-1 on validation images, %, over 2 epochs. moving average: 89.00 % in epoch 2. "
        "last weights: 90.00 % in epoch 2"
    )
    assert charts[1]["aria-label"] == "Loss, over 2 epochs. training: 1 at the end. validation: 0.5 at the end"


def test_the_most_confident_mistakes_come_first():
    labels = [0, 1] * 30
    probabilities = [0.5 + index / 200 for index in range(60)]
    predicted = [1 - label if index % 2 else label for index, label in enumerate(labels)]
    sheet = section(page_of(labels, predicted, probabilities=probabilities), "Most confident mistakes")
    shown = [image.attributes["alt"].split(":")[0] for image in sheet.all("img")]
    assert shown == [f"val/{index}.png" for index in range(59, 11, -2)]
    assert sheet.all("p")[0].text().startswith("24 of 30 mistakes")
    captions = [caption.text() for caption in sheet.all("figcaption")]
    assert captions[0] == "class 0 80 %is class 1val/59.png"  # in three lines


@pytest.mark.parametrize(
    ("size", "kind", "side"), [((40, 30), "png", 30), ((90, 100), "jpeg", 90), ((900, 1000), "jpeg", 144)]
)
def test_thumbnails_are_square_and_small_images_keep_their_pixels(size, kind, side):
    (shown,) = page_of([0, 1], [0, 0], size=size).all("img")
    start, content = shown.attributes["src"].split(",")
    assert start == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (side, side)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - (1, 0, 0)).max() <= 2
    assert (shown.attributes["kind"] == "pixels") == (kind == "png")


def test_images_that_cannot_be_read_are_left_out_and_counted():
    tree = page_of([0, 1, 0, 1], [1, 0, 1], unreadable=(1,))
    assert "1 of 4 images cannot be read" in tree.all("header")[0].text()
    sheet = section(tree, "Most confident mistakes")
    assert [image.attributes["alt"][:9] for image in sheet.all("img")] == ["val/0.png", "val/2.png"]
    assert sheet.all("p")[0].text().startswith("2 of 3 mistakes")


def test_without_any_readable_image_there_are_the_curves():
    tree = page_of([0, 1], [])
    assert [heading.text() for heading in tree.all("h2")] == ["Learning curves"]
    assert "2 of 2 images cannot be read" in tree.all("header")[0].text()


def test_without_a_mistake_it_says_so():
    tree = page_of([0, 1], [0, 1])
    assert section(tree, "Most confident mistakes").all("p")[0].text() == "No mistake."
    assert tree.all("img") == []
    assert tree.all("ol", kind="pairs") == []


def test_matrix_and_pairs_count_every_image():
    tree = page_of([0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 0, 2])
    names = ("class 0", "class 1", "class 2")
    counts = {(0, 0): 1, (0, 1): 2, (1, 1): 1, (2, 0): 1, (2, 2): 1}
    assert cells_of(tree) == {(names[label], names[predicted]): count for (label, predicted), count in counts.items()}
    (matrix,) = tree.all("svg")[2:]
    shown = [group for group in matrix.all("g") if group.all("title")[0].text() == "class 0 taken for class 1: 2"]
    assert shown[0].attributes["transform"] == "translate(34 0)"  # in the first row, the second column
    assert shown[0].all("text")[0].text() == "2"
    pairs = [pair.text() for pair in tree.all("ol", kind="pairs")[0].all("li")]
    assert pairs == ["class 0 taken for class 1 2 ×", "class 2 taken for class 0 1 ×"]  # noqa: RUF001


def test_long_names_beside_the_matrix_keep_both_ends():
    names = ["a species with a long name, male", "a species with a long name, female"]
    tree = page_of([0, 1], [0, 1], class_names=names)
    texts = [text.text() for text in tree.all("svg")[2].all("text", kind="end")]
    assert texts == ["a specie…ame, male", "a specie…e, female"]


@pytest.mark.parametrize(
    ("num_classes", "counted", "named"), [(20, True, True), (50, False, True), (200, False, False)]
)
def test_the_matrix_says_less_the_more_classes_there_are(num_classes, counted, named):
    labels = list(range(num_classes))
    matrix = page_of(labels, labels).all("svg")[2]
    texts = [text.text() for text in matrix.all("text")]
    assert ("1" in texts) == counted
    assert ("class 3" in texts) == named
    assert len(matrix.all("rect", kind="right")) == num_classes


def test_classes_are_listed_from_the_worst():
    tree = page_of([0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1, 0], class_names=["a", "b", "c", "unseen"])
    listed = section(tree, "Accuracy of each class")
    rows = [row.text() for row in listed.all("li")]
    assert rows == ["c0.0 % 0 of 1", "b50.0 % 2 of 4", "a100.0 % 2 of 2"]
    assert [bar.attributes["style"] for bar in listed.all("i")] == ["width:0.0%", "width:50.0%", "width:100.0%"]
    assert listed.all("p")[0].text() == "The worst first. Without an image here: 1."


def test_of_more_than_200_classes_the_extremes_are_listed():
    labels = [label for label in range(201) for _ in range(2)]
    predicted = [0 if index < 60 and index % 2 else label for index, label in enumerate(labels)]
    tree = page_of(labels, predicted)
    assert len(tree.all("svg")) == 2
    assert "201 classes are too many for a matrix" in section(tree, "Confusions").text()
    names = [name.text() for name in tree.all("span", kind="name")]
    assert len(names) == 40
    assert names[:3] == ["class 1", "class 2", "class 3"]
    assert names[-1] == "class 200"
