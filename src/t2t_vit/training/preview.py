"""Images of the first batch as the network gets them: augmented, erased and mixed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from t2t_vit.data.loading import Batch, DrawnImages, EpochBatches, collate
from t2t_vit.data.pixels import as_seen
from t2t_vit.pictures.sheet import draw_sheet
from t2t_vit.runtime.files import whole_file
from t2t_vit.training.learner import Learner

NUM_SHOWN = 32


def show_augmented(learner: Learner, loader: "DataLoader[Batch]", class_names: Sequence[str], path: Path) -> None:
    """Writes a sheet of images of this process's first batch. It changes nothing that training draws.

    Args:
        loader: gives the images of a training batch by their draws.
        class_names: label to name.
        path: the PNG file.

    Raises:
        UserError: the file cannot be written.
    """
    batches, dataset = loader.batch_sampler, loader.dataset
    assert isinstance(batches, EpochBatches)
    assert isinstance(dataset, DrawnImages)
    batches.set_steps(0, 1)
    batch = collate(dataset.__getitems__(next(iter(batches))[:NUM_SHOWN]))
    if len(batch.images) < 2:  # mixup pairs them
        return
    images, targets = learner.inputs(batch, 0)
    pixels = (images * learner.normalize.std + learner.normalize.mean).cpu()
    smoothing = learner.config.smoothing
    captions = [caption_of(target, class_names, smoothing=smoothing) for target in targets.cpu()]
    sheet = draw_sheet(np.stack([as_picture(one) for one in pixels]), captions)
    with whole_file(path) as file:
        sheet.save(file, "png")


def as_picture(pixels: Tensor) -> np.ndarray:
    """What the network gets, (C, H, W), as a picture to look at, (H, W, 3), uint8."""
    if len(pixels) not in (1, 3):
        return np.asarray(as_seen(pixels))
    channels_last = pixels.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1)
    return (255 * channels_last).round().to(torch.uint8).numpy()


def caption_of(target: Tensor, class_names: Sequence[str], *, smoothing: float) -> str:
    """The class of an image, or the classes of a mixture with their shares, the larger one first."""
    if target.ndim == 0:
        return class_names[int(target)]
    shares, labels = target.float().topk(min(2, len(class_names)))
    if float(shares[-1]) <= smoothing / len(class_names) + 1e-3:  # which every class has
        return class_names[int(labels[0])]
    parts = zip(labels.tolist(), shares.tolist(), strict=True)
    return " + ".join(f"{share:.0%} {class_names[label]}" for label, share in parts)
