"""The path from images to labels, probabilities and embeddings, from Python."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from t2t_vit import Predictor
from t2t_vit.data.images import UnreadableImage, array_images
from t2t_vit.errors import UserError
from t2t_vit.inference.predictor import evaluation_loader
from t2t_vit.runtime.machine import find_machine

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
DATA_CONFIG = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD, "crop_pct": 1.0, "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def predictor(small_checkpoint):
    return Predictor(small_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def pixels():
    """Five images that need no resizing."""
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory, pixels):
    """The same images as files, of which the second and the third are broken."""
    paths = [tmp_path_factory.mktemp("images") / f"{number}.png" for number in range(5)]
    for path, array in zip(paths, pixels, strict=True):
        Image.fromarray(array).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    paths[2].write_text("no image")
    return paths


def by_hand(checkpoint, pixels):
    """Probabilities by class, and the embedding."""
    contents = torch.load(checkpoint, weights_only=True)
    model = timm.create_model(contents["model"], **contents["model_args"]).eval()
    model.load_state_dict(contents["state_dict"])
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    x = (torch.tensor(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        features = model.forward_features(x.unsqueeze(0))
        embedding, logits = model.forward_head(features, pre_logits=True)[0], model.forward_head(features)[0]
    return dict(zip(contents["class_names"], logits.softmax(-1).tolist(), strict=True)), embedding


def test_probabilities_and_embedding_are_the_networks(predictor, small_checkpoint, files, pixels):
    probabilities, embedding = by_hand(small_checkpoint, pixels[0])
    found = predictor(files[0], embed=True)
    assert found.name == str(files[0])
    assert dict(found.labels) == pytest.approx(probabilities, abs=1e-5)
    assert [label for label, _ in found.labels] == sorted(probabilities, key=lambda label: -probabilities[label])
    torch.testing.assert_close(found.embedding, embedding, atol=1e-5, rtol=0)
    assert predictor(files[0]).embedding is None


def test_images_come_open_or_as_files_and_in_any_mode(predictor, files, pixels):
    image = Image.fromarray(pixels[0])
    labels = predictor(image).labels
    assert labels == predictor(str(files[0])).labels == predictor(image.convert("RGBA")).labels
    grey = image.convert("L")
    assert predictor(grey).labels == predictor(grey.convert("RGB")).labels != labels
    assert predictor(image, top_k=2).labels == labels[:2]
    with Image.open(files[3]) as opened:
        assert [found.name for found in predictor([image, opened])] == ["image 0", str(files[3])]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_many_images_give_what_each_gives_in_their_order(predictor, files, batch_size):
    found = list(predictor(iter(files), embed=True, batch_size=batch_size, workers=0))
    assert [prediction.name for prediction in found] == list(map(str, files))
    for index, prediction in enumerate(found):
        if index in (1, 2):
            assert (prediction.labels, prediction.embedding) == ([], None)
            assert prediction.error.startswith(f"{files[index]} is not a readable image: ")
        else:
            alone = predictor(files[index], embed=True)
            assert dict(prediction.labels) == pytest.approx(dict(alone.labels), abs=1e-6)
            torch.testing.assert_close(prediction.embedding, alone.embedding, atol=1e-5, rtol=0)
            assert prediction.error is None


def test_workers_read_the_same(predictor, files):
    assert list(predictor(files, batch_size=2, workers=1)) == list(predictor(files, batch_size=2, workers=0))


def test_an_image_set_is_called_by_its_names(predictor, pixels):
    images = array_images(pixels, ["a", "b", "c", "d", "e"], [0] * 5)
    found = list(predictor(images, top_k=1))
    assert [prediction.name for prediction in found] == ["a", "b", "c", "d", "e"]
    assert found[0].labels == predictor(Image.fromarray(pixels[0])).labels[:1]


def test_one_unreadable_image_is_an_error(predictor, files, tmp_path):
    with pytest.raises(UserError, match=r"2\.png is not a readable image: no image format"):
        predictor(files[2])
    with pytest.raises(UserError, match="No such file"):
        predictor(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("class_names", "num_classes", "label"),
    [
        (None, 1000, "tench, Tinca tinca"),
        (None, 4, "3"),
        ([f"shop {number}" for number in range(1000)], 1000, "shop 999"),  # a thousand classes need not be ImageNet's
    ],
)
def test_names_of_classes(tmp_path, write_small_checkpoint, class_names, num_classes, label):
    write_small_checkpoint(tmp_path / "weights.pt", num_classes=num_classes, class_names=class_names)
    labels = Predictor(tmp_path / "weights.pt", device="cpu")(Image.new("RGB", (50, 40))).labels
    assert len(labels) == num_classes
    assert label in dict(labels)


def test_a_checkpoint_without_a_head(tmp_path, write_small_checkpoint):
    write_small_checkpoint(tmp_path / "features.pt", num_classes=0)
    with pytest.raises(UserError, match=r"features\.pt has no head, so that it cannot name classes"):
        Predictor(tmp_path / "features.pt", device="cpu")


def test_a_network_in_memory_keeps_its_mode(predictor, small_checkpoint, pixels):
    """Dropout of everything would tell the modes apart."""
    network = torch.nn.Sequential(predictor.network, torch.nn.Dropout(1.0)).train()
    ours = Predictor(network, device="cpu", data_config=DATA_CONFIG, class_names=predictor.class_names)
    assert ours(Image.fromarray(pixels[0])) == predictor(Image.fromarray(pixels[0]))
    assert network.training
    assert network[1].training


@pytest.mark.parametrize("readable", [(0, 1, 2, 3, 4), (0,), ()])
def test_the_stream_gives_every_batch_and_stops_when_told(predictor, pixels, readable):
    images = array_images(pixels, [str(number) for number in range(5)], list(range(5)))

    def load(index, crop=None):
        if index not in readable:
            raise UnreadableImage(images.names[index], "gone")
        return images.load(index, crop)

    def network(normalised):
        assert len(normalised) > 0, "not every network takes an empty batch"
        return predictor.network(normalised)

    ours = Predictor(network, device="cpu", data_config=DATA_CONFIG, class_names="abc")
    loader = evaluation_loader(replace(images, load=load), DATA_CONFIG, batch_size=2, machine=ours.machine, workers=0)
    found = [(batch.indices.tolist(), logits.shape) for batch, logits, _ in ours.stream(loader)]
    assert [indices for indices, _ in found] == [
        [index for index in pair if index in readable] for pair in ((0, 1), (2, 3), (4,))
    ]
    assert all(shape == (len(indices), 3) for indices, shape in found)
    assert len(list(ours.stream(loader, stop=lambda: True))) == 1


def test_half_precision_where_it_is_asked_for(small_checkpoint, predictor, pixels):
    images = array_images(pixels, [""] * 5, [0] * 5)

    def logits_of(predictor):
        loader = evaluation_loader(images, DATA_CONFIG, batch_size=5, machine=predictor.machine, workers=0)
        ((_, logits, _),) = predictor.stream(loader)
        return logits

    half, whole = logits_of(Predictor(small_checkpoint, device="cpu", amp=True)), logits_of(predictor)
    assert (half.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(half.float(), whole, atol=0.3, rtol=0.1)


def test_each_of_several_processes_predicts_all_that_it_is_asked_for(small_checkpoint, files):
    machine = replace(find_machine("cpu", amp=False), rank=1, world_size=2)
    network = Predictor(small_checkpoint, device="cpu").network
    predictor = Predictor(network, machine=machine, data_config=DATA_CONFIG, class_names="abc")
    assert [prediction.name for prediction in predictor(files)] == list(map(str, files))
