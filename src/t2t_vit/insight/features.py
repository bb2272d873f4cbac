"""Feature maps of a network's layers, and what is wrong with some: channels that say nothing, tokens of huge norm."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from t2t_vit.errors import UserError, closest
from t2t_vit.insight.geometry import Grid, grid_of
from t2t_vit.models.t2t_vit import T2TViT
from t2t_vit.models.tokens import PatchTokens

LEAST_SHARE = 0.01
"""A channel is near zero if its energy, the mean square over the positions, is below this share of the mean energy of
its layer's channels; it is near constant if its variance over the positions is below this share of its own energy."""
FEWEST_CELLS = 16
"""Maps of fewer cells are not asked whether they are near constant: over four cells many a channel is, by chance."""
OUTLIER_TIMES = 3.0
"""A patch token is an outlier if its norm is more than so many times the median of its layer."""


@dataclass(frozen=True)
class Features:
    """The maps of one layer.

    Attributes:
        maps: (B, C, h, w), float32.
        grid: where the cells lie on the images.
    """

    maps: Tensor
    grid: Grid


@dataclass(frozen=True)
class LayerStatistics:
    """What is kept of a layer's maps of B images.

    Attributes:
        zero: which channels are near zero, (B, C).
        constant: which are near constant, and not near zero, (B, C).
        norms: of the token at each position, (B, h, w).
        standout: how far each token is from the image's mean token, (B, h, w), in standard deviations of the channels
            over the positions: the root mean square over the channels.
        grid: where the positions lie.
    """

    zero: Tensor
    constant: Tensor
    norms: Tensor
    standout: Tensor
    grid: Grid

    @classmethod
    def of(cls, features: Features) -> "LayerStatistics":
        """Measures the maps of a layer."""
        maps = features.maps
        power = maps.square().mean(dim=(2, 3))  # (B, C)
        zero = power < LEAST_SHARE * power.mean(dim=1, keepdim=True)
        variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0, keepdim=True)
        constant = (variance[:, :, 0, 0] < LEAST_SHARE * power) & (maps[0, 0].numel() >= FEWEST_CELLS)
        varying = variance.clamp(min=torch.finfo(variance.dtype).tiny)
        standout = ((maps - mean).square() / varying).mean(dim=1).sqrt()
        return cls(zero, constant & ~zero, maps.norm(dim=1), standout, features.grid)

    @property
    def invalid(self) -> Tensor:
        """Which channels say nothing of where something is, (B, C)."""
        return self.zero | self.constant


@dataclass(frozen=True)
class LayerHealth:
    """A row of layers.csv: what `visualize` counts in a layer, over all its images.

    Attributes:
        invalid: channels that are near zero or near constant in every image.
        zero: those of them that are near zero in every image.
        invalid_an_image: mean number of channels that are near zero or near constant in an image.
        largest_norm: the largest norm of a token over the median, of the image where that is largest.
        outliers: mean number of tokens in an image whose norm is more than OUTLIER_TIMES the median.
    """

    model: str
    layer: str
    channels: int
    invalid: int
    zero: int
    invalid_an_image: float
    median_norm: float
    largest_norm: float
    outliers: float


def layer_health(model_name: str, layer: str, measured: Sequence[LayerStatistics]) -> LayerHealth:
    """Counts what is wrong with a layer's maps of some images."""
    zero = torch.cat([one.zero for one in measured]).all(dim=0)
    invalid = torch.cat([one.invalid for one in measured]).all(dim=0)
    norms = torch.cat([one.norms.flatten(1) for one in measured])  # (B, N)
    median = norms.median(dim=1, keepdim=True).values
    ratios = norms / median.clamp(min=torch.finfo(norms.dtype).tiny)
    return LayerHealth(
        model=model_name,
        layer=layer,
        channels=len(invalid),
        invalid=int(invalid.sum()),
        zero=int(zero.sum()),
        invalid_an_image=float(torch.cat([one.invalid for one in measured]).sum(dim=1).float().mean()),
        median_norm=float(median.mean()),
        largest_norm=float(ratios.max()),
        outliers=float((ratios > OUTLIER_TIMES).sum(dim=1).float().mean()),
    )


def feature_layers(model: nn.Module) -> list[str]:
    """The layers whose maps tell how an image goes through a network, in order.

    Of a network of this package they are the stages of its T2T module and its blocks; of one of timm its patch
    embedding and blocks, or the blocks of what timm calls its feature maps.
    """
    if isinstance(model, T2TViT):
        tokens = (
            []
            if isinstance(model.tokens_to_token, PatchTokens)
            else [
                f"tokens_to_token.{name}"
                for name, _ in model.tokens_to_token.named_children()
                if name.startswith(("attention", "soft_split"))
            ]
        )
        return [*tokens, "tokens_to_token", *(f"blocks.{i}" for i in range(len(model.blocks)))]
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(model, "patch_embed"):
        return ["patch_embed", *(f"blocks.{i}" for i in range(len(blocks)))]
    if not tells_layers(model):
        raise UserError(f"{type(model).__name__} does not tell its feature maps: name modules with --layers.")
    names: list[str] = []
    for entry in cast(Any, model.feature_info):
        name = entry["module"]
        module = model.get_submodule(name)
        inner = getattr(module, "blocks", None)
        if isinstance(inner, nn.Sequential | nn.ModuleList):
            names += [f"{name}.blocks.{i}" for i in range(len(inner))]
        elif isinstance(module, nn.Sequential) and len(module) > 1:
            names += [f"{name}.{child}" for child, _ in module.named_children()]
        else:
            names.append(name)
    return names


def tells_layers(model: nn.Module) -> bool:
    """Whether the network is one of this package, or one of timm that tells its feature maps."""
    return bool(getattr(model, "feature_info", None))


@contextlib.contextmanager
def capture_features(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Features]]:
    """Captures what layers return in the next forward.

    Args:
        model: a network of this package or of timm.
        layers: names of modules that return maps, (B, C, h, w), or tokens of patches.

    Yields:
        A dictionary that a forward fills: name of a layer to its features.

    Raises:
        UserError: there is no such layer; or, in the forward, one returns neither maps nor tokens.
    """
    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules:
            raise UserError(closest(layer, [name for name in modules if name], "layer"))
    found: dict[str, Features] = {}
    image_size = (0, 0)

    def begin(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        nonlocal image_size
        images = inputs[0] if inputs else next(iter(named.values()))
        image_size = (images.shape[-2], images.shape[-1])

    with contextlib.ExitStack() as stack:
        stack.enter_context(model.register_forward_pre_hook(begin, with_kwargs=True))
        for layer in layers:

            def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor, layer: str = layer) -> None:
                if not isinstance(output, Tensor):
                    raise UserError(f"{layer} returns a {type(output).__name__} and no map: choose another layer.")
                found[layer] = Features(*to_maps(model, output.detach().float(), image_size, layer=layer))

            stack.enter_context(modules[layer].register_forward_hook(keep))
        yield found


def to_maps(
    model: nn.Module, output: Tensor, image_size: tuple[int, int], *, layer: str | None = None
) -> tuple[Tensor, Grid]:
    """A layer's output for images of (H, W) as maps, (B, C, h, w), and where their cells lie on the images.

    Args:
        output: maps, (B, C, h, w), or (B, h, w, C) where timm says that the network has those; or tokens (B, N, C), of
            which those before the grid, such as the class token, are left out.
        layer: the name of the module that returned it; None stands for the backbone.

    Raises:
        UserError: it is neither.
    """
    if output.ndim == 4:
        maps = output.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else output
        size = maps.shape[2], maps.shape[3]
        if isinstance(model, T2TViT):  # convolutions in the place of soft splits
            grid = grid_of(model, image_size, layer=layer)
            if size == (grid.height, grid.width):
                return maps, grid
        return maps, Grid.spread(size, image_size)
    if output.ndim == 3:
        grid = grid_of(model, image_size, layer=layer)
        num_before = output.shape[1] - grid.height * grid.width
        if 0 <= num_before <= int(getattr(model, "num_prefix_tokens", 0)):
            return output[:, num_before:].transpose(1, 2).reshape(
                output.shape[0], output.shape[2], grid.height, grid.width
            ), grid
    raise UserError(
        f"{layer or 'The layer'} of {type(model).__name__} returns {tuple(output.shape)}, which is neither maps nor a "
        "token for each patch: choose a block."
    )
