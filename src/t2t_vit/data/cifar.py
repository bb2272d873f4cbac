"""CIFAR-10 and CIFAR-100, in their published files."""

import tarfile
from functools import partial
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100

from t2t_vit.data.images import ImageSet, array_images
from t2t_vit.data.splitting import Split, Splits
from t2t_vit.errors import UserError

CIFARS: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def cifar_splits(name: str, data_dir: str | None) -> Splits:
    """The 50,000 training and the 10,000 test images of CIFAR-10 or CIFAR-100, 32 x 32 pixels.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: the folder of the published archive or its content; what is not there is downloaded into it.
    """
    folder = Path(data_dir or "data").expanduser()
    train, test = (partial(_read, name, folder, is_train) for is_train in (True, False))
    return Splits(name, Split(f"training images of {name}", train), Split(f"test images of {name}", test))


def _read(name: str, folder: Path, is_train: bool) -> tuple[tuple[str, ...], ImageSet]:
    dataset = _open(name, folder, is_train)
    class_names, split = tuple(dataset.classes), "train" if is_train else "test"
    # The class is part of the name, so that the split's fingerprint knows the labels.
    names = [f"{split}/{class_names[label]}/{index:05d}" for index, label in enumerate(dataset.targets)]
    return class_names, array_images(dataset.data, names, dataset.targets)


def _open(name: str, folder: Path, is_train: bool) -> CIFAR10:
    """torchvision's data set, which checks the files' MD5 sums before it reads them."""
    cifar = CIFARS[name]
    try:
        return cifar(folder, train=is_train)
    except RuntimeError:  # its files are missing, or not the published ones
        pass
    try:
        return cifar(folder, train=is_train, download=True)
    except (OSError, RuntimeError, HTTPException, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"{name} is not in the folder {folder}, and downloading {cifar.url} failed: {str(error).rstrip('.')}. "
            f"Put {cifar.filename} there, or name its folder with --data-dir."
        ) from error
