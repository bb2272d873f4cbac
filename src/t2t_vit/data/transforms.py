"""What happens to an image on its way into a network: augmentation, resizing and normalisation, by timm."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose, Grayscale, InterpolationMode, RandomAffine, RandomCrop, Resize

from t2t_vit.data.crops import ScaledCrop
from t2t_vit.errors import UserError

Transform = Callable[[Image.Image], Tensor]


def train_transform(
    data_config: Mapping[str, Any], *, crop_padding: float | None = None, affine: float = 0.0, **augmentation: Any
) -> tuple[ScaledCrop | None, Transform]:
    """timm's training augmentation without random erasing: a crop, and a transform from RGB image to uint8 tensor.

    Args:
        data_config: input_size (C, H, W), mean, std and whatever else timm's data configuration holds.
        crop_padding: resizes to the input size, pads by this share of it and crops that size again, as is usual for
            CIFAR, instead of cropping at random scales.
        affine: strength of a random rotation, shear, shift and zoom of the crop, 0 for none: at 1 up to 15 degrees of
            each angle, a tenth of the side and of the size.
        augmentation: arguments of timm.data.create_transform, such as hflip, scale, auto_augment, no_aug.

    Returns:
        The crop with which images are loaded, None for whole images, and the transform of loaded images.

    Raises:
        UserError: timm does not take these settings.
    """
    try:
        steps = _steps({**data_config, "interpolation": "random", **augmentation, "is_training": True})
    except AssertionError as error:  # timm's way to refuse what it is asked for
        raise UserError(f"timm refuses these augmentation settings: {augmentation}. {error}") from error
    if affine > 0:
        share, degrees = 0.1 * affine, 15 * affine
        fill = [round(255 * mean) for mean in _statistics(data_config)[0]]  # as timm's policies fill
        zoom, bilinear = (1 - share, 1 + share), InterpolationMode.BILINEAR
        steps.insert(-1, RandomAffine(degrees, (share, share), zoom, degrees, interpolation=bilinear, fill=fill))
    place = next((i for i, step in enumerate(steps) if isinstance(step, RandomResizedCropAndInterpolation)), None)
    if place is None:  # no_aug
        return None, Compose(steps)
    timms = steps.pop(place)
    if crop_padding is None:
        return ScaledCrop(timms), Compose(steps)
    height, width = timms.size
    padding = [round(width * crop_padding), round(height * crop_padding)]
    resize = Resize((height, width), str_to_interp_mode(data_config["interpolation"]))
    return None, Compose([*steps[:place], resize, RandomCrop((height, width), padding=padding), *steps[place:]])


def eval_transform(data_config: Mapping[str, Any]) -> Transform:
    """timm's resize and centre crop, from RGB image to uint8 tensor.

    Args:
        data_config: input_size (C, H, W), mean, std, crop_pct, interpolation: timm's data configuration.
    """
    return Compose(_steps(data_config))


def _steps(settings: Mapping[str, Any]) -> list[Any]:
    """timm's transforms of one image, without its normalisation."""
    mean, _ = _statistics(settings)
    steps = create_transform(**{**settings, "mean": mean}, normalize=False).transforms
    return steps if settings["input_size"][0] == 3 else [Grayscale(), *steps]


def _statistics(settings: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel of the input."""
    in_chans = settings["input_size"][0]
    if in_chans == 3:
        return settings["mean"], settings["std"]
    if in_chans != 1:
        raise UserError(f"Images have 3 channels, or 1 in grey, got in_chans={in_chans}.")
    # timm's loader averages them too where the image has fewer channels than they have.
    return (fmean(settings["mean"]),), (fmean(settings["std"]),)


class Normalize:
    """Turns images of bytes into what a network takes: (images / 255 - mean) / std, on its device.

    Args:
        data_config: input_size (C, H, W), mean, std: timm's data configuration.
        device: where the network is.
        re_prob: probability that a rectangle of an image becomes noise, as in timm's random erasing of mode "pixel";
            it draws from Python's random numbers and from torch's on the device.
    """

    def __init__(self, data_config: Mapping[str, Any], device: torch.device, *, re_prob: float = 0.0) -> None:
        self.device = device
        mean, std = (torch.tensor(values, device=device) for values in _statistics(data_config))
        self.mean, self.std = mean[:, None, None], std[:, None, None]
        self.erase = RandomErasing(re_prob, mode="pixel", device=device) if re_prob > 0 else None

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8, anywhere, to float32 on the device."""
        images = images.to(self.device, non_blocking=True)
        images = images.to(torch.float32, memory_format=torch.contiguous_format)
        # The steps of torchvision's ToTensor and Normalize, so that the numbers are the same to the last bit.
        images = images.div_(255).sub_(self.mean).div_(self.std)
        return images if self.erase is None else self.erase(images)
