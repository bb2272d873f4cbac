"""timm's augmentation, resizing and normalisation of images."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose, Grayscale, InterpolationMode, RandomAffine, RandomCrop, Resize

from t2t_vit.data.crops import ScaledCrop
from t2t_vit.errors import UserError

Transform = Callable[[Any], Tensor]
"""From an RGB image to (C, H, W), uint8, or from an array of channels to one of another size, float32."""


def train_transform(
    data_config: Mapping[str, Any], *, crop_padding: float | None = None, affine: float = 0.0, **augmentation: Any
) -> tuple[ScaledCrop | None, Transform]:
    """timm's training augmentation without random erasing: a crop, and a transform of what it leaves.

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
        UserError: timm refuses these settings.
    """
    try:
        steps = _steps({**data_config, "interpolation": "random", **augmentation, "is_training": True})
    except AssertionError as error:  # timm's way to refuse what it is asked for
        raise UserError(f"timm refuses these augmentation settings: {augmentation}. {error}") from error
    if affine > 0:
        share, degrees = 0.1 * affine, 15 * affine
        is_array = data_config["input_size"][0] not in (1, 3)
        means = _statistics(data_config)[0]
        fill = list(means) if is_array else [round(255 * mean) for mean in means]  # as timm's policies fill
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
    """timm's resize and centre crop, by timm's data configuration."""
    return Compose(_steps(data_config))


def _steps(settings: Mapping[str, Any]) -> list[Any]:
    """timm's transforms of one image, without its normalisation."""
    mean, _ = _statistics(settings)
    timms = {key: value for key, value in settings.items() if key != "background"}
    steps = create_transform(**{**timms, "mean": mean}, normalize=False).transforms
    return [Grayscale(), *steps] if settings["input_size"][0] == 1 else steps


def _statistics(settings: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel of the input."""
    in_chans, mean, std = settings["input_size"][0], settings["mean"], settings["std"]
    if in_chans == 1:
        # timm's loader averages them too where the image has fewer channels than they have.
        return (fmean(mean),), (fmean(std),)
    if len(mean) != in_chans:
        raise UserError(f"Expected mean and std of {in_chans} channels, got {len(mean)} in the data configuration.")
    return mean, std


class Normalize:
    """Turns images into what a network takes, on its device: (images - mean) / std, where bytes are divided by 255.

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
        """(B, C, H, W), uint8 or float32, anywhere, to float32 on the device."""
        scale = 255 if images.dtype == torch.uint8 else 1
        images = images.to(self.device, non_blocking=True)
        images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        # The steps of torchvision's ToTensor and Normalize, so that the numbers are the same to the last bit.
        images = images.div_(scale).sub_(self.mean).div_(self.std)
        return images if self.erase is None else self.erase(images)
