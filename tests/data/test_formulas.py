import numpy as np
import pytest
import torch

from t2t_vit.data.formula_sets import CLASS_NAMES, CLASSES, formula_splits
from t2t_vit.data.formulas import FAMILIES, Numbers, draw
from t2t_vit.data.loading import DrawnImages, EpochBatches, collate
from t2t_vit.data.transforms import train_transform
from t2t_vit.errors import UserError

MEANS = {  # of six images of 32 pixels
    "strokes": [67.51, 212.12, 132.92, 142.56, 144.59, 118.63],
    "contours": [68.52, 123.51, 119.08, 108.27, 241.83, 155.08],
    "fractals": [159.19, 155.05, 65.38, 117.19, 151.6, 43.19],
    "motifs": [140.5, 92.15, 151.86, 120.23, 148.54, 151.83],
    "waves": [147.51, 90.9, 80.33, 64.94, 139.67, 175.2],
    "leaves": [87.56, 184.2, 99.69, 170.45, 152.31, 97.91],
}


def test_numbers_are_those_of_splitmix64():
    # Reference values of the published algorithm for the seed 0: its state grows by the golden gamma each time.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    numbers = Numbers(torch.zeros(1, dtype=torch.int64))
    numbers.key = torch.zeros(1, dtype=torch.int64)
    found = numbers.uniform(3)[0]
    assert found.tolist() == [(value >> 40) / 2**24 for value in expected]


def test_numbers_are_evenly_and_normally_distributed():
    numbers = Numbers(7, torch.arange(500))
    even, normal = numbers.uniform(100, low=-1, high=3), numbers.normal(100, std=2)
    assert even.mean() == pytest.approx(1, abs=0.02)
    assert even.var() == pytest.approx(16 / 12, rel=0.02)
    assert (even.min() >= -1) & (even.max() < 3)
    assert normal.mean() == pytest.approx(0, abs=0.03)
    assert normal.std() == pytest.approx(2, rel=0.02)
    assert abs(float(torch.corrcoef(even.T)[0, 1])) < 0.15
    whole = numbers.whole(100, low=2, high=4)
    assert whole.unique(return_counts=True)[1].tolist() == pytest.approx([16667] * 3, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
class TestFamily:
    def test_an_image_does_not_depend_on_its_batch(self, family):
        classes, instances = torch.arange(12) % 5, torch.arange(12)
        together = draw(family, classes, instances, side=32)
        for row in (0, 7):
            alone = draw(family, classes[row : row + 1], instances[row : row + 1], side=32)
            assert (alone[0].int() - together[row].int()).abs().max() <= 1

    def test_images_are_those_that_were_drawn_when_the_weights_were_made(self, family):
        images = draw(family, torch.arange(6), torch.arange(6), side=32).float()
        assert images.mean(dim=(1, 2, 3)).tolist() == pytest.approx(MEANS[family], abs=0.5)

    def test_class_image_and_seed_all_matter(self, family):
        def one(number: int, instance: int, seed: int) -> torch.Tensor:
            return draw(family, torch.tensor([number]), torch.tensor([instance]), side=32, seed=seed).float()

        first = one(0, 0, 0)
        for other in (one(1, 0, 0), one(0, 1, 0), one(0, 0, 1)):
            assert (first - other).abs().mean() > 2

    @pytest.mark.parametrize("side", [16, 96])
    def test_any_size(self, family, side):
        images = draw(family, torch.arange(8), torch.arange(8), side=side)
        assert images.shape == (8, 3, side, side)
        assert images.dtype == torch.uint8
        assert (images.float().std(dim=(1, 2, 3)) > 1).all()  # none is blank

    def test_images_of_a_class_are_nearer_to_one_another(self, family):
        # What is drawn, without colours but where these are all: the classes must be there to be learnt.
        classes, instances = torch.arange(8).repeat_interleave(24), torch.arange(24).repeat(8)
        numbers = list(FAMILIES).index(family)
        cover, ink, _ = FAMILIES[family](
            Numbers(0, torch.full_like(classes, numbers), classes),
            Numbers(0, torch.full_like(classes, numbers), classes, instances),
            32,
        )
        drawn = ink.mean(dim=1) if family == "leaves" else cover
        spectrum = torch.fft.rfft2(drawn).abs().flatten(1)[:, 1:]  # which shifts do not change
        spectrum = spectrum / spectrum.norm(dim=1, keepdim=True)
        means = spectrum.unflatten(0, (8, 24))[:, :12].mean(dim=1)
        held_out = spectrum.unflatten(0, (8, 24))[:, 12:].flatten(0, 1)
        found = (held_out @ (means / means.norm(dim=1, keepdim=True)).T).argmax(dim=1)
        assert (found == torch.arange(8).repeat_interleave(12)).float().mean() > 0.4  # chance has 0.125


class TestAsData:
    def test_classes_and_images(self):
        splits = formula_splits("formulas")
        (names, train), (val_names, val) = splits.train.read(), splits.val.read()
        assert names == val_names == CLASS_NAMES
        assert len(CLASS_NAMES) == sum(CLASSES.values()) == 2560
        assert np.bincount(train.labels).tolist() == [25] * 2560
        assert len({*train.names, *val.names}) == len(train) + len(val)

    def test_no_image_is_in_two_epochs_nor_in_validation(self):
        _, train = formula_splits("formulas").train.read()
        _, val = formula_splits("formulas").val.read()
        row = 1100 * 25 + 5  # of a contour
        drawn = [train.generate([row], [epoch], side=24)[0] for epoch in range(3)]
        drawn += [val.generate([1100], [0], side=24)[0]]
        assert len({pixels.tobytes() for pixels in drawn}) == 4

    def test_a_batch_has_what_was_drawn_with_the_crop_and_the_flip_after_it(self):
        _, images = formula_splits("formulas").train.read()
        settings = {"input_size": (3, 24, 24), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
        crop, transform = train_transform(settings, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=1.0, color_jitter=None)
        batches = EpochBatches(len(images), batch_size=8)
        batches.set_steps(8000, 8001)  # the second epoch
        draws = next(iter(batches))
        batch = collate(DrawnImages(images.drawn_at(24), transform, crop=crop).__getitems__(draws))
        assert {draw.epoch for draw in draws} == {1}
        pixels = images.generate([draw.image_index for draw in draws], [1] * 8, side=24)
        assert (batch.images.permute(0, 2, 3, 1).numpy() == pixels[:, :, ::-1]).all()
        assert batch.targets.tolist() == [images.labels[draw.image_index] for draw in draws]

    def test_subsets_draw_their_own_rows(self):
        _, images = formula_splits("formulas").train.read()
        some = images.subset([50_000, 3])
        assert (some.generate([1, 0], [2, 2]) == images.generate([3, 50_000], [2, 2])).all()
        of_16_px = some.drawn_at(16).generate([1, 0], [2, 2])
        assert (of_16_px == images.generate([3, 50_000], [2, 2], side=16)).all()
        assert np.asarray(some.load(1)).shape == (64, 64, 3)


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match=r"Unknown family 'stroke'. Did you mean strokes\?"):
        draw("stroke", torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), side=32)
