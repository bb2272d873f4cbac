"""How images are prepared for a network."""

from typing import Any

from timm.data import resolve_model_data_config
from timm.layers import to_2tuple
from timm.models import get_model_input_config
from torch import nn

from t2t_vit.models.checkpoint_formats import DATA_KEYS


def data_config_of(
    network: nn.Module, *, img_size: int | tuple[int, int] | None = None, **known: Any
) -> dict[str, Any]:
    """timm's data configuration of a network: input_size, mean, std, crop_pct and interpolation; and the background.

    Args:
        network: gives its input channels and, where it takes one size only, its image size; its pretrained
            configuration gives whatever the rest leaves open.
        img_size: side, or (H, W), in pixels, for a network that takes any.
        known: entries from elsewhere, such as a checkpoint's; None leaves an entry open.
    """
    known = {key: value for key, value in known.items() if value is not None}
    own = get_model_input_config(network)
    if own["fixed_input_size"] or (img_size is None and "input_size" not in known):
        known["input_size"] = own["input_size"]
    elif img_size is not None:
        known["input_size"] = (own["input_size"][0], *to_2tuple(img_size))
    config = resolve_model_data_config(network, args=known)
    return {key: config[key] for key in DATA_KEYS} | {"background": known.get("background", "white")}
