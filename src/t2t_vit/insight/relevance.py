"""Where the pixels lie that a class score comes from, by methods that differ in what they measure.

Each takes a network in evaluation mode, normalised images (B, C, H, W) and a class for each, (B,), and returns the
relevance of every pixel, (B, H, W), float32, none below zero. `faithfulness` measures how far one can be believed.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_vit.errors import UserError
from t2t_vit.insight.attention import AttentionMap, attention_layers, record_attention, stored_weights, tokens_of
from t2t_vit.insight.features import to_maps
from t2t_vit.insight.geometry import TOKEN_TRANSFORMERS, Grid, grid_of, num_class_tokens
from t2t_vit.models.splits import Split
from t2t_vit.models.t2t_vit import T2TViT

Method = Callable[..., Tensor]
Recorded = Mapping[str, AttentionMap]

INTEGRATION_STEPS = 32
OCCLUDED_SHARE = 7
"""A covering window's side is a seventh of the image's; it moves by half of that."""


@torch.no_grad()
def rollout(model: nn.Module, images: Tensor, labels: Tensor, *, recorded: Recorded | None = None) -> Tensor:
    """Attention rollout through the backbone (Abnar & Zuidema, 2020). It does not depend on the class.

    r_(l-1) = (r_l + A_l^T r_l) / 2, where A_l is layer l's attention, averaged over its heads. The last r lies on the
    tokens that the head reads: the class token, or all of the grid.

    Args:
        recorded: the attention of a forward of these images, as `record_attention` yields it; None runs one.

    Raises:
        UserError: the network has no attention that can be captured, or attends within windows.
    """
    recorded = recorded or _record(model, images)
    return _grid_of_tokens(model, images).to_pixels(_roll(model, images, recorded))


@torch.no_grad()
def rollout_to_pixels(model: nn.Module, images: Tensor, labels: Tensor, *, recorded: Recorded | None = None) -> Tensor:
    """Attention rollout that goes on through the token transformers and the soft splits, down to the pixels.

    Below a soft split a pixel has the mean relevance of the tokens whose patches it is in; through a token transformer,
    whose skip connection is over the values, r becomes (r + A^T r) / 2 as in the backbone. The performer's A^T r are
    two thin products.

    Raises:
        UserError: the network is not of this package.
    """
    splits = _need_soft_splits(model)
    recorded = recorded or _record(model, images)
    relevance = _roll(model, images, recorded)
    size = images.shape[-2], images.shape[-1]
    for number in reversed(range(len(splits))):
        below = Grid.after(splits[:number], size)
        relevance = _below(relevance, splits[number], (below.height, below.width))
        if attention := recorded.get(f"tokens_to_token.attention{number}"):
            relevance = (relevance + attention.pull(relevance)) / 2
    return relevance.reshape(-1, *size)


@torch.inference_mode(False)
def legrad(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """LeGrad (Bousselham et al., 2024): gradients of the class score with respect to attention, summed over the layers.

    The score of layer l is the head's for its output, and depends on its own attention A_l alone:
    sum over l, mean over heads and queries of relu(d score_l / d A_l).

    Raises:
        UserError: the network's blocks have no attention that can be captured, or differ in width.
    """
    net: Any = model
    blocks, norm = _need_readable_blocks(model), net.norm
    grid, num_prefix_tokens = _grid_of_tokens(model, images), net.num_prefix_tokens
    total = torch.zeros(len(images), num_prefix_tokens + grid.height * grid.width, device=images.device)
    weights: list[Tensor] = []
    images, labels = images.clone(), labels.clone()  # which may have been made in inference mode

    # Blocks run one after another: between a block's `begin` and its `add` its attention alone puts weights here.
    def begin(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0].detach().requires_grad_(), *inputs[1:]

    def add(_: nn.Module, __: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        score = net.forward_head(norm(tokens)).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, weights.pop())
        total.add_(gradient.float().relu().mean(dim=(1, 2)))
        return tokens.detach()

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for block in blocks:
            stack.enter_context(stored_weights(block.attn, weights.append))
            stack.enter_context(block.register_forward_pre_hook(begin))
            stack.enter_context(block.register_forward_hook(add))
        model(images)
    return grid.to_pixels(total[:, num_prefix_tokens:])


@torch.inference_mode(False)
def gradcam(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017): the last map, its channels weighted by their mean gradient, and rectified.

    Of a vision transformer the map is what `norm1` of the last block returns, in a pre-norm block what enters its
    attention: behind that the score of a network that reads its class token depends on no other token.

    Raises:
        UserError: the network tells no map, or runs its last one not once.
    """
    last = last_map(model)
    kept: list[Tensor] = []
    images, labels = images.detach().clone(), labels.clone()  # which may have been made in inference mode
    with torch.enable_grad(), last.register_forward_hook(lambda _, __, found: kept.append(found)):
        logits = model(images.requires_grad_())
    if len(kept) != 1:
        raise UserError(f"{type(model).__name__} runs its last map {len(kept)} times: Grad-CAM needs it once.")
    (activation,) = kept
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), activation)
    size = images.shape[-2], images.shape[-1]
    (maps, grid), (gradients, _) = (to_maps(model, x.detach().float(), size) for x in (activation, gradient))
    found = (gradients.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()  # (B, h, w)
    return grid.to_pixels(found.flatten(1))


def integrated_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Integrated gradients (Sundararajan et al., 2017) from the data's mean colour to the image, by captum.

    What is below zero, which speaks against the class, becomes zero.

    Raises:
        UserError: captum is not installed.
    """
    method = _captum().IntegratedGradients(model)
    found = method.attribute(images, target=labels, n_steps=INTEGRATION_STEPS, internal_batch_size=8)
    return found.detach().float().sum(dim=1).relu()


@torch.no_grad()
def occlusion(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Occlusion (Zeiler & Fergus, 2014), by captum: what the class score loses while a window covers the pixel.

    The window has the data's mean colour. What is below zero becomes zero.

    Raises:
        UserError: captum is not installed.
    """
    channels, height, width = images.shape[1:]
    stride = max(1, height // (2 * OCCLUDED_SHARE)), max(1, width // (2 * OCCLUDED_SHARE))
    found = (
        _captum()
        .Occlusion(model)
        .attribute(
            images,
            target=labels,
            strides=(channels, *stride),
            sliding_window_shapes=(channels, 2 * stride[0], 2 * stride[1]),
            perturbations_per_eval=8,
        )
    )
    return found.float().sum(dim=1).relu()


def random_map(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Smooth noise, another for each image, and the same in every call: what any method should be better than."""
    maps = []
    for image in images:
        digest = hashlib.sha1(image.detach().cpu().float().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        coarse = torch.rand(1, 1, 8, 8, generator=generator)
        maps.append(F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=False)[0, 0])
    return torch.stack(maps).clamp(min=0).to(images.device)


def last_map(model: nn.Module) -> nn.Module:
    """The module whose output Grad-CAM looks at: `norm1` of the last block, or else timm's last feature map.

    Raises:
        UserError: the network tells none.
    """
    blocks: Any = list(getattr(model, "blocks", ()))
    if blocks and hasattr(blocks[-1], "norm1"):
        return blocks[-1].norm1
    info: Any = getattr(model, "feature_info", None)
    if not info:
        raise UserError(f"{type(model).__name__} does not tell its feature maps.")
    return model.get_submodule(info[-1]["module"])


def _need_attention(model: nn.Module) -> None:
    with record_attention(model):
        pass


def _need_soft_splits(model: nn.Module) -> tuple[Split, ...]:
    if not isinstance(model, T2TViT):
        raise UserError(f"{type(model).__name__} has no soft splits: rollout ends at its patches.")
    return model.tokens_to_token.splits


def _need_readable_blocks(model: nn.Module) -> list[Any]:
    """The blocks, where the head can read from the output of each."""
    blocks: list[Any] = [
        block for block in getattr(model, "blocks", ()) if hasattr(getattr(block, "attn", None), "fused_attn")
    ]
    if not blocks or getattr(model, "norm", None) is None or not hasattr(model, "forward_head"):
        raise UserError(f"{type(model).__name__} has no blocks with attention, from whose outputs the head could read.")
    if len({block.norm1.weight.numel() for block in blocks}) > 1:
        raise UserError("The blocks of this network differ in width: its head can read from the last one only.")
    return blocks


def _need_captum(model: nn.Module) -> None:
    _captum()


def _grid_of_tokens(model: nn.Module, images: Tensor) -> Grid:
    return grid_of(model, (images.shape[-2], images.shape[-1]))


def _record(model: nn.Module, images: Tensor) -> Recorded:
    with record_attention(model) as recorded:
        model(images)
    return recorded


def _roll(model: nn.Module, images: Tensor, recorded: Recorded) -> Tensor:
    """The relevance of the backbone's tokens, (B, h * w)."""
    names = [name for name in attention_layers(model) if name in recorded and name not in TOKEN_TRANSFORMERS]
    if not names:
        raise UserError(f"{type(model).__name__} has no layer in which all tokens attend to one another.")
    size = (images.shape[-2], images.shape[-1])
    grid, num_prefix_tokens = tokens_of(model, names[-1], size, recorded[names[-1]])
    relevance = torch.zeros(len(images), num_prefix_tokens + grid.height * grid.width, device=images.device)
    pool, num_read = getattr(model, "global_pool", "token"), num_class_tokens(model)
    if pool == "map":
        raise UserError(
            "The head of this network weights its tokens by attention of its own: rollout would leave it out."
        )
    if pool == "token" and num_read:
        relevance[:, :num_read] = 1 / num_read  # a distilled network's two heads are averaged
    else:
        relevance[:, num_prefix_tokens:] = 1 / (grid.height * grid.width)
    for name in reversed(names):
        relevance = (relevance + recorded[name].pull(relevance)) / 2
    return relevance[:, num_prefix_tokens:]


def _below(relevance: Tensor, split: Split, size: tuple[int, int]) -> Tensor:
    """From tokens, (B, N), to the pixels of their map, (B, H * W): the mean over a pixel's patches, of the same sum."""
    kernel, stride, padding = split

    def fold(values: Tensor) -> Tensor:
        patches = values.unsqueeze(1).expand(-1, kernel * kernel, -1)
        return F.fold(patches, size, kernel, padding=padding, stride=stride).flatten(1)

    below = fold(relevance) / fold(torch.ones_like(relevance)).clamp(min=1)  # a pixel may be in no patch
    total = below.sum(dim=1, keepdim=True)
    return below * relevance.sum(dim=1, keepdim=True) / total.clamp(min=torch.finfo(total.dtype).tiny)


def _captum() -> Any:
    try:
        import captum.attr  # an extra, and slow to import
    except ImportError:
        raise UserError(
            "integrated-gradients and occlusion need captum, which is not installed: pip install 't2t-vit[explain]'."
        ) from None
    return captum.attr


@dataclass(frozen=True)
class Explained:
    """A method by which `visualize` explains a class score.

    Attributes:
        need: raises `UserError` for a network that the method does not fit.
        about: what it shows, in a sentence.
        is_cheap: whether it costs no more than a few forwards, so that it runs without being asked for.
        takes_attention: whether it takes the attention of a forward as `recorded`.
    """

    run: Method
    need: Callable[[nn.Module], Any]
    about: str
    is_cheap: bool = True
    takes_attention: bool = False


METHODS = {
    "rollout": Explained(
        rollout,
        _need_attention,
        "Attention, followed back through the backbone. It knows nothing of the class.",
        takes_attention=True,
    ),
    "rollout-pixels": Explained(
        rollout_to_pixels,
        _need_soft_splits,
        "Attention, followed back through backbone, token transformers and soft splits to the pixels.",
        takes_attention=True,
    ),
    "legrad": Explained(
        legrad, _need_readable_blocks, "Attention weights that would raise the class score, of all layers."
    ),
    "gradcam": Explained(
        gradcam, last_map, "Channels of the last map that would raise the class score, where they are active."
    ),
    "integrated-gradients": Explained(
        integrated_gradients,
        _need_captum,
        "Gradients at the pixels, on the way from the data's mean colour to the image.",
        is_cheap=False,
    ),
    "occlusion": Explained(
        occlusion, _need_captum, "What the class score loses while a window covers the pixel.", is_cheap=False
    ),
}


def reasons_against(model: nn.Module, methods: Iterable[str]) -> dict[str, str]:
    """Why some of the methods do not fit a network, by their names."""
    reasons = {}
    for name in methods:
        try:
            METHODS[name].need(model)
        except UserError as error:
            reasons[name] = str(error)
    return reasons
