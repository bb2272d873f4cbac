"""Where the class token looks, layer by layer, as small pictures for the page of a server."""

import base64
from collections.abc import Sequence
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor, nn

from t2t_vit.errors import UserError
from t2t_vit.inference.predictor import Predictor
from t2t_vit.insight.attention import attention_layers, capture_attention
from t2t_vit.insight.geometry import TOKEN_TRANSFORMERS, grid_of, num_class_tokens


def layers_shown(predictor: Predictor) -> list[str]:
    """The layers whose class token's attention can be shown; none for a network without a class token."""
    network = predictor.network
    if not isinstance(network, nn.Module):  # exported
        return []
    try:
        layers = [name for name in attention_layers(network) if name not in TOKEN_TRANSFORMERS]
        if not num_class_tokens(network):
            return []
        blank = torch.zeros(1, *predictor.data_config["input_size"], dtype=torch.uint8)
        attention_maps(predictor, blank, layers)
    except (UserError, LookupError, RuntimeError):  # of timm's networks not all can be watched
        return []
    return layers


@torch.inference_mode()
def attention_maps(predictor: Predictor, image: Tensor, layers: Sequence[str]) -> list[str]:
    """The attention of each layer's class token, the mean over its heads, at every pixel.

    Args:
        predictor: its network has a class token.
        image: (1, C, H, W), as a loader gives it.
        layers: by `layers_shown`.

    Returns:
        For each layer a grey PNG of H x W pixels in base64, in which the layer's largest value is white.
    """
    network = predictor.network
    image_size = (image.shape[-2], image.shape[-1])
    with capture_attention(network, queries=["class"]) as maps:
        predictor.answer(image)
    pictures = []
    for name in layers:
        weights = maps[name].mean(dim=1)[:, 0]  # (1, N)
        grid = grid_of(network, image_size, layer=name)
        values = grid.to_pixels(weights[:, -grid.height * grid.width :].float())[0]  # (H, W)
        grey = (255 * values / values.max().clamp_min(1e-12)).round().to(torch.uint8).cpu().numpy()
        file = BytesIO()
        Image.fromarray(grey).save(file, "PNG")
        pictures.append(base64.b64encode(file.getvalue()).decode())
    return pictures
