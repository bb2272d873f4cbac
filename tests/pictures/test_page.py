"""What the report of a run says. The page is well-formed XML too, which makes it easy to read here."""

import base64
import io
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.inference.calibration import calibrate
from t2t_vit.inference.evaluate import Accuracy
from t2t_vit.pictures.page import _time_in_words, page
from t2t_vit.pictures.report import Answer, Best, RunSummary


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def texts_of(elements):
    return [text_of(element) for element in elements]


def images_of(labels, *, size=(40, 30), names=None, unreadable=()):
    def load(index, crop=None):
        if index in unreadable:
            raise UnreadableImage("x", "gone")
        return Image.new("RGB", size, (index, 0, 0))

    return ImageSet(names or [f"val/{index}.png" for index in range(len(labels))], labels, load)


BEST = Best(20, 1, "averaged weights", 89.0, 8, 89.0)


def page_of(
    labels, predicted, *, class_names=None, probabilities=None, test=None, augmented=None, looked_back=None, **images
):
    """The page of a run of two epochs that predicted these labels."""
    probabilities = probabilities or [0.9] * len(labels)
    predictions = [
        Answer(
            index,
            labels[index],
            predicted[index],
            probabilities[index],
            in_top5=True,
            label_probability=probabilities[index] if predicted[index] == labels[index] else 1 - probabilities[index],
        )
        for index in range(len(predicted))
    ]
    metrics = [
        {"epoch": epoch, "step": 10 * epoch + 10, "train_loss": 1.0, "val_loss": 0.5}
        | {"val_top1": top1, "ema_top1": top1 - 1}
        | {"val_images": 8, "steps_s": 45.0, "images_per_second": 5.0, "elapsed_s": 60.0 * (epoch + 1)}
        | {"data_wait_percent": 20.0 * epoch, "device_wait_percent": 60.4}
        for epoch, top1 in enumerate((50.0, 90.0))
    ]
    class_names = class_names or [f"class {label}" for label in range(max(labels) + 1)]
    summary = RunSummary(
        "title", "about", metrics, BEST, images_of(labels, **images), class_names, test=test, augmented=augmented
    )
    return ElementTree.fromstring(page(summary, predictions, **looked_back or {}))


def section(tree, title):
    (found,) = [part for part in tree.iter("section") if part.find("h2").text == title]
    return found


def cells_of(tree):
    """The matrix as the titles of its cells tell it."""
    titles = [title.text for svg in tree.iter("svg") for title in svg.iter("title")]
    found = [re.fullmatch(r"(.*) taken for (.*): ([\d,]+)", title).groups() for title in titles]
    return {(label, predicted): int(count.replace(",", "")) for label, predicted, count in found}


def test_nothing_is_asked_of_the_network():
    tree = page_of([0, 1], [1, 0])
    assert "default-src 'none'" in tree.find("head/meta[@http-equiv]").get("content")
    assert list(tree.iter("script")) == []
    for element in tree.iter():
        assert not [key for key in element.keys() if key.startswith("on")]  # noqa: SIM118
        assert re.match("data:|#", element.get("src", element.get("href", "#")))
    assert not re.search("url|@import", "".join(style.text for style in tree.iter("style")))


def test_a_colour_of_the_page_depends_on_the_light():
    light, dark = re.findall(r":root \{(.*?)\}", page_of([0, 1], [0, 1]).find("head/style").text, re.DOTALL)
    assert "--paper: #ffffff" in light
    assert "--paper: #14161a" in dark


def test_the_speed_is_told_with_what_the_time_of_the_last_epoch_went_to():
    assert texts_of(page_of([0, 1], [1, 0]).iterfind(".//dl/div"))[-2:] == [
        "time2:00 75 % of it steps, the rest evaluations and checkpoints",
        "images a second5 waiting for images 20 %, computing 60 %",
    ]


def test_rows_of_an_older_version_tell_no_share_of_the_steps():
    rows = [{"elapsed_s": 60.0}, {"elapsed_s": 120.0, "steps_s": 45.0}]
    assert _time_in_words(SimpleNamespace(metrics=rows)) == "evaluations included"


def test_names_are_shown_as_they_are_and_run_nothing():
    names = ['<script>alert("1")</script> --> #0077bb', "a & 'b' <img src=http://x> $x$ \u732b"]
    tree = page_of([0, 1], [1, 0], class_names=names, names=[f"val/{name}/\udcff.png" for name in names])
    assert cells_of(tree) == {(names[0], names[1]): 1, (names[1], names[0]): 1}
    first = section(tree, "Most confident mistakes").find(".//img")
    assert first.get("alt") == f"val/{names[0]}/?.png: taken for {names[1]} with 90 %, is {names[0]}"
    assert texts_of(tree.iterfind(".//li/span[@class='name']")) == names


def test_bytes_of_a_class_name_that_are_no_text_are_question_marks():
    assert cells_of(page_of([0], [0], class_names=["\udcff", "b"])) == {("?", "?"): 1}


def test_pictures_have_words_for_those_who_do_not_see_them():
    tree = page_of([0, 1, 1], [1, 1, 1])
    assert all(image.get("alt") for image in tree.iter("img"))
    assert {svg.get("role") for svg in tree.iter("svg")} == {"img"}
    assert [svg.get("aria-label") for svg in tree.iter("svg")] == [
        "Top-1 on validation images, %, over 20 steps. moving average: 89.00 % at step 20. "
        "last weights: 90.00 % at step 20",
        "Loss, over 20 steps. training: 1 at the end. validation: 0.5 at the end",
        "Confusion matrix of 2 classes",
    ]


def test_the_most_confident_mistakes_come_first():
    labels = [0, 1] * 30
    probabilities = [0.5 + index / 200 for index in range(60)]
    predicted = [1 - label if index % 2 else label for index, label in enumerate(labels)]
    sheet = section(page_of(labels, predicted, probabilities=probabilities), "Most confident mistakes")
    shown = [image.get("alt").split(":")[0] for image in sheet.iter("img")]
    assert shown == [f"val/{index}.png" for index in range(59, 11, -2)]
    assert text_of(sheet.find("p")).startswith("24 of 30 mistakes")
    assert text_of(sheet.find(".//figcaption")) == "class 0 80 %is class 1val/59.png"  # in three lines


@pytest.mark.parametrize(
    ("size", "kind", "expected"),
    [((40, 30), "png", (40, 30)), ((90, 100), "jpeg", (90, 100)), ((900, 1000), "jpeg", (130, 144))],
)
def test_thumbnails_show_the_whole_image_and_small_images_keep_their_pixels(size, kind, expected):
    (shown,) = section(page_of([0, 1], [0, 0], size=size), "Most confident mistakes").iter("img")
    start, content = shown.get("src").split(",")
    assert start == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == expected
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - (1, 0, 0)).max() <= 2
    assert (shown.get("class") == "pixels") == (kind == "png")


def test_images_that_cannot_be_read_are_left_out_and_counted():
    tree = page_of([0, 1, 0, 1], [1, 0, 1], unreadable=(1,))
    assert "1 of 4 images cannot be read" in text_of(tree.find(".//header"))
    sheet = section(tree, "Most confident mistakes")
    assert [image.get("alt")[:9] for image in sheet.iter("img")] == ["val/0.png", "val/2.png"]
    assert text_of(sheet.find("p")).startswith("2 of 3 mistakes")


def test_without_any_readable_image_there_are_the_curves():
    tree = page_of([0, 1], [])
    assert texts_of(tree.iter("h2")) == ["Learning curves"]
    assert texts_of(tree.iter("dt")) == ["best step", "time", "images a second"]
    assert "2 of 2 images cannot be read" in text_of(tree.find(".//header"))


def test_without_a_mistake_it_says_so():
    tree = page_of([0, 1], [0, 1])
    assert text_of(section(tree, "Most confident mistakes").find("p")) == "No mistake."
    assert section(tree, "Most confident mistakes").find(".//img") is None
    assert tree.find(".//ol[@class='pairs']") is None


def test_matrix_and_pairs_count_every_image():
    tree = page_of([0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 0, 2], class_names=["a", "b", "c"])
    assert cells_of(tree) == {("a", "a"): 1, ("a", "b"): 2, ("b", "b"): 1, ("c", "a"): 1, ("c", "c"): 1}
    texts = [(text.text, float(text.get("x")), float(text.get("y"))) for text in list(tree.iter("svg"))[2].iter("text")]
    (x_of_b, y_of_a), ((x, y),) = (texts[1][1], texts[3][2]), [place for text, *place in texts if text == "2"]
    assert [text for text, *_ in texts[:6]] == ["a", "b", "c", "a", "b", "c"]  # above and at the left
    assert (x, y) == pytest.approx((x_of_b, y_of_a), abs=2)
    pairs = texts_of(tree.iterfind(".//ol[@class='pairs']/li"))
    assert pairs == ["a taken for b 2 ×", "c taken for a 1 ×"]  # noqa: RUF001


def test_long_names_beside_the_matrix_keep_both_ends():
    names = ["a species with a long name, male", "a species with a long name, female"]
    texts = texts_of(list(page_of([0, 1], [0, 1], class_names=names).iter("svg"))[2].iter("text"))
    assert {"a specie…ame, male", "a specie…e, female"} <= set(texts)


@pytest.mark.parametrize(
    ("num_classes", "counted", "named"), [(20, True, True), (50, False, True), (200, False, False)]
)
def test_the_matrix_says_less_the_more_classes_there_are(num_classes, counted, named):
    labels = list(range(num_classes))
    tree = page_of(labels, labels)
    texts = texts_of(list(tree.iter("svg"))[2].iter("text"))
    assert ("1" in texts) == counted
    assert ("class 3" in texts) == named
    assert len(cells_of(tree)) == num_classes


def test_classes_are_listed_from_the_worst():
    tree = page_of([0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1, 0], class_names=["a", "b", "c", "unseen"])
    listed = section(tree, "Accuracy of each class")
    assert texts_of(listed.iter("li")) == [
        "c0.0 % 0 of 1, 0-79 %",
        "b50.0 % 2 of 4, 15-85 %",
        "a100.0 % 2 of 2, 34-100 %",
    ]
    assert [bar.get("style") for bar in listed.iter("i")] == ["width:0.0%", "width:50.0%", "width:100.0%"]
    assert text_of(listed.find("p")) == "The worst first, with 95 % confidence intervals. Without an image here: 1."


def test_of_more_than_200_classes_the_extremes_are_listed():
    labels = [label for label in range(201) for _ in range(2)]
    predicted = [0 if index < 60 and index % 2 else label for index, label in enumerate(labels)]
    tree = page_of(labels, predicted)
    assert len(list(tree.iter("svg"))) == 2
    assert "201 classes are too many for a matrix" in text_of(section(tree, "Confusions"))
    names = texts_of(tree.iterfind(".//li/span[@class='name']"))
    assert len(names) == 40
    assert names[:3] == ["class 1", "class 2", "class 3"]
    assert names[-1] == "class 200"


def test_the_accuracy_on_test_is_the_headline():
    tree = page_of([0, 1], [0, 1], test=Accuracy(top1=87.5, top5=100.0, loss=0.3, num_images=16))
    first = next(tree.iter("dl"))[0]
    assert " ".join("".join(first.itertext()).split()) == (
        "top-1 on test87.50 % 16 images of test/, by which nothing was chosen; 64.0-96.5 % with 95 % confidence"
    )


def test_the_highest_losses_follow_the_surest_mistakes():
    labels, predicted = [0] * 40, [1] * 30 + [0] * 10
    probabilities = [0.5 + index / 100 for index in range(40)]
    tree = page_of(labels, predicted, class_names=["a", "b"], probabilities=probabilities)
    shown = texts_of(section(tree, "Highest losses").iterfind(".//figcaption"))
    assert len(shown) == 16
    assert shown[0] == "a 45.0 %taken for b 55 %val/5.png"  # the surest 24 are above
    assert shown[-1] == "a 89.0 %val/39.png"
    tree = page_of([0], [], class_names=["a"])
    assert "Highest losses" not in [part.find("h2").text for part in tree.iter("section")]


def test_confused_pairs_have_examples():
    tree = page_of([0, 0, 0, 1, 2], [1, 1, 0, 0, 2])
    part = section(tree, "Confusion matrix")
    assert texts_of(part.iter("h3"))[1:] == ["class 0 taken for class 1", "class 1 taken for class 0"]
    assert [image.get("alt") for image in part.iter("img")] == [
        "val/0.png: class 0 taken for class 1",
        "val/1.png: class 0 taken for class 1",
        "val/3.png: class 1 taken for class 0",
    ]


def test_what_was_found_afterwards_is_shown(tmp_path):
    logits = np.random.default_rng(0).normal(size=(60, 2))
    labels = [0, 1] * 30
    Image.new("RGB", (200, 100)).save(tmp_path / "augmented.png")
    found = {"calibration": calibrate(logits, np.array(labels)), "embeddings": logits}
    tree = page_of(labels, labels, augmented=tmp_path / "augmented.png", looked_back=found)
    texts = {part.find("h2").text: text_of(part) for part in tree.iter("section")}
    assert f"temperature {found['calibration'].temperature:.2f}" in texts["Can the probabilities be trusted?"]
    names = [svg.get("aria-label") for svg in tree.iter("svg")]
    assert names[-1] == "Map of 60 images of 2 classes, 0 of them mistakes"
    assert names[-2].startswith("Right answers over confidence. without temperature: calibration error ")
    image = section(tree, "What the network was trained on").find(".//img")
    assert (image.get("width"), image.get("height")) == ("200", "100")


def test_few_images_have_no_map():
    tree = page_of([0, 1], [0, 1], looked_back={"embeddings": np.zeros((2, 3))})
    assert "What the network finds alike" not in [part.find("h2").text for part in tree.iter("section")]
