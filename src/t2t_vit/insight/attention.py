"""Attention weights of a network, by name, for all its tokens or for chosen ones.

The fused kernels store no weights, and a performer has none: its attention is implied by its features. Both are
computed here from the queries and keys that pass through a forward, which itself runs as ever.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from t2t_vit.errors import UserError
from t2t_vit.insight.geometry import TOKEN_TRANSFORMERS, Grid, grid_of, num_class_tokens
from t2t_vit.models.attention import SoftmaxAttention
from t2t_vit.models.mixers import PerformerMixer, performer_features
from t2t_vit.models.splits import without_autocast

Query = Literal["class"] | tuple[int, int]
"""The class token, or the patch at a pixel, (x, y), of the network's input."""

MAX_WEIGHTS = 2**29
"""The most weights of a layer that are computed: 2 GiB in float32."""
QUERIES_AT_A_TIME = 512


class AttentionTooLarge(UserError):
    """The attention weights of a layer, or of all of them, would take more than MAX_WEIGHTS."""


class AttentionMap(Protocol):
    """The attention A of one layer, (B, heads, N, N), of which no more is computed than is asked for."""

    @property
    def num_tokens(self) -> int:
        """N."""
        ...

    def rows(self, queries: Sequence[int] | None) -> Tensor:
        """The weights of chosen queries, (B, heads, Q, N), or of all of them, float32 or wider."""
        ...

    def pull(self, relevance: Tensor) -> Tensor:
        """A^T r, averaged over the heads: what queries of relevance r, (B, N), draw from each key, (B, N)."""
        ...


@dataclass(frozen=True)
class SoftmaxMap:
    """softmax(scale q k^T), where q and k are (B, heads, N, D)."""

    q: Tensor
    k: Tensor
    scale: float

    @property
    def num_tokens(self) -> int:
        return self.k.shape[2]

    def rows(self, queries: Sequence[int] | None) -> Tensor:
        q = self.q if queries is None else self.q[:, :, list(queries)]
        _refuse_large(q.shape[0], q.shape[1], q.shape[2], self.k.shape[2])
        return self._weights(q)

    def pull(self, relevance: Tensor) -> Tensor:
        relevance = relevance.to(torch.promote_types(self.q.dtype, relevance.dtype))
        total = torch.zeros_like(relevance)
        queries = torch.split(self.q, QUERIES_AT_A_TIME, dim=2)
        with without_autocast(relevance):
            for q, part in zip(queries, torch.split(relevance, QUERIES_AT_A_TIME, dim=1), strict=True):
                total += (part[:, None, None] @ self._weights(q)).squeeze(2).mean(dim=1)
        return total

    def _weights(self, q: Tensor) -> Tensor:
        exact = torch.promote_types(q.dtype, torch.float32)
        with without_autocast(q):
            return (q.to(exact) * self.scale @ self.k.to(exact).transpose(-2, -1)).softmax(dim=-1)


@dataclass(frozen=True)
class PerformerMap:
    """phi_q phi_k^T / total, the attention that a performer's features imply: see `performer_features`."""

    phi_q: Tensor
    phi_k: Tensor
    total: Tensor

    @property
    def num_tokens(self) -> int:
        return self.phi_k.shape[1]

    def rows(self, queries: Sequence[int] | None) -> Tensor:
        chosen = slice(None) if queries is None else list(queries)
        phi_q, total = self.phi_q[:, chosen], self.total[:, chosen]
        _refuse_large(phi_q.shape[0], 1, phi_q.shape[1], self.phi_k.shape[1])
        with without_autocast(phi_q):
            return (phi_q / total @ self.phi_k.transpose(1, 2)).unsqueeze(1)

    def pull(self, relevance: Tensor) -> Tensor:
        relevance = relevance.to(torch.promote_types(self.phi_q.dtype, relevance.dtype))
        with without_autocast(relevance):
            drawn = (relevance[:, None] / self.total.transpose(1, 2)) @ self.phi_q  # (B, 1, m)
            return (drawn @ self.phi_k.transpose(1, 2)).squeeze(1)


@dataclass(frozen=True)
class StoredMap:
    """Weights that a network of timm computed, (B, heads, N, N)."""

    weights: Tensor

    @property
    def num_tokens(self) -> int:
        return self.weights.shape[-1]

    def rows(self, queries: Sequence[int] | None) -> Tensor:
        weights = self.weights if queries is None else self.weights[:, :, list(queries)]
        return weights.to(torch.promote_types(weights.dtype, torch.float32))

    def pull(self, relevance: Tensor) -> Tensor:
        relevance = relevance.to(torch.promote_types(self.weights.dtype, relevance.dtype))
        with without_autocast(relevance):
            return (relevance[:, None] @ self.weights.mean(dim=1).to(relevance.dtype)).squeeze(1)


@contextlib.contextmanager
def capture_attention(model: nn.Module, *, queries: Sequence[Query] | None = None) -> Iterator[dict[str, Tensor]]:
    """Captures the attention weights of every layer, in any mode and precision, for images of any shape.

        with capture_attention(model) as maps:
            model(images)
        maps["blocks.3.attn"]  # (B, heads, N, N)

    The keys are `blocks.3.attn` for the backbone, whose first token is the class token, and
    `tokens_to_token.attention1` and `tokens_to_token.attention2` for the token transformers, which have no class token.
    Weights are those before dropout. Those of networks of timm are captured where their attention has timm's switch
    `fused_attn`, which is off meanwhile.

    Memory: without `queries` a layer takes 4 B heads N^2 bytes. With them it takes 4 B heads N bytes a query; the token
    transformers at 1,024 px have 65,536 tokens, and their matrix is never built.

    Args:
        model: a network of this package or of timm.
        queries: the queries whose rows are kept, in this order: "class", or (x, y), the patch whose centre is the
            nearest to that pixel of the input. The token transformers keep the patches alone, and nothing where there
            are none. None keeps all.

    Yields:
        A dictionary that each forward fills anew: name to (B, heads, N, N), or to (B, heads, Q, N), float32 or wider.

    Raises:
        UserError: the network has no attention that can be captured; a query lies outside the image; or the weights of
            a layer, all queries of it, would take more than 2 GiB.
    """
    chosen = None if queries is None else list(queries)
    image_size: tuple[int, int] = (0, 0)
    maps: dict[str, Tensor] = {}

    def begin(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        nonlocal image_size
        maps.clear()
        images = inputs[0] if inputs else next(iter(named.values()))
        image_size = (images.shape[-2], images.shape[-1])

    def keep(name: str, found: AttentionMap) -> None:
        if chosen is None:
            maps[name] = found.rows(None)
            return
        places = places_of(model, name, chosen, image_size, found)
        if places:
            maps[name] = found.rows(places)

    with model.register_forward_pre_hook(begin, with_kwargs=True), _watched(model, keep):
        yield maps


@contextlib.contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, AttentionMap]]:
    """Records the attention of every layer of a forward, as maps from which rows and products are computed later.

    Raises:
        UserError: the network has no attention that can be captured; or, in the forward, the weights of all layers of a
            network of timm take more than 2 GiB.
    """
    found: dict[str, AttentionMap] = {}
    num_stored = 0

    def keep(name: str, attention: AttentionMap) -> None:
        nonlocal num_stored
        found[name] = attention
        if isinstance(attention, StoredMap):  # of timm; ours are queries and keys
            num_stored += attention.weights.numel()
            if num_stored > MAX_WEIGHTS:
                raise AttentionTooLarge(
                    f"The attention of {type(model).__name__}, all layers, would take more than "
                    f"{MAX_WEIGHTS * 4 / 2**30:.0f} GiB: give smaller images."
                )

    with _watched(model, keep):
        yield found


def attention_layers(model: nn.Module) -> list[str]:
    """The names of the layers whose attention can be captured, in the order in which they run."""
    return [*_layers(model)]


def places_of(
    model: nn.Module, name: str, queries: Sequence[Query], image_size: tuple[int, int], attention: AttentionMap
) -> list[int]:
    """The rows of a layer's attention that belong to queries; those that the layer does not have are left out.

    Raises:
        UserError: a query lies outside the image, or the layer attends within windows.
    """
    grid, num_prefix_tokens = tokens_of(model, name, image_size, attention)
    places = []
    for query in queries:
        if query != "class":
            places.append(num_prefix_tokens + grid.token_at(*query))
        elif num_prefix_tokens and num_class_tokens(model):
            places.append(0)
    return places


def tokens_of(model: nn.Module, name: str, image_size: tuple[int, int], attention: AttentionMap) -> tuple[Grid, int]:
    """The grid of the tokens of a layer's attention, for images of (H, W), and the number of tokens before them.

    Raises:
        UserError: the layer does not attend to the whole image.
    """
    num_prefix_tokens = 0 if name in TOKEN_TRANSFORMERS else int(getattr(model, "num_prefix_tokens", 0))
    grid = grid_of(model, image_size, layer=name)
    if attention.num_tokens != num_prefix_tokens + grid.height * grid.width:
        raise UserError(
            f"{name} of {type(model).__name__} attends within windows or to other tokens than the image's "
            f"{grid.height} x {grid.width}: no query of the image can be chosen there."
        )
    return grid, num_prefix_tokens


Keep = Callable[[str, AttentionMap], None]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules with attention, by the names under which it is captured."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_timms = hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
        if isinstance(module, PerformerMixer):
            found[name] = module
        elif is_timms:
            found[name.removesuffix(".attn") if name.startswith("tokens_to_token.") else name] = module
    return found


@contextlib.contextmanager
def _watched(model: nn.Module, keep: Keep) -> Iterator[None]:
    """Calls `keep` with the attention of each layer whenever the layer runs."""
    layers = _layers(model)
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no attention that can be captured: a network of this package has, and one of "
            "timm whose attention has the switch fused_attn, such as vit_small_patch16_224."
        )
    with contextlib.ExitStack() as stack:
        for name, module in layers.items():
            if isinstance(module, PerformerMixer):
                stack.enter_context(_attend_replaced(module, partial(_keep_performer, keep, name, module)))
            elif isinstance(module, SoftmaxAttention):
                stack.enter_context(_attend_replaced(module, partial(_keep_softmax, keep, name, module)))
            else:
                stack.enter_context(stored_weights(module, partial(_keep_stored, keep, name)))
        yield


@contextlib.contextmanager
def _attend_replaced(module: Any, before: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Calls `before` with the queries and keys of each call of a module's `attend`."""
    outer, attend = vars(module).get("attend"), module.attend  # another capture's, and whatever there is

    def watched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before(q, k)
        return attend(q, k, v)

    module.attend = watched
    try:
        yield
    finally:
        if outer is None:
            del module.attend
        else:
            module.attend = outer


@contextlib.contextmanager
def stored_weights(module: Any, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Lets a module compute its attention weights, and calls `keep` with them: (B, heads, N, N), part of the graph.

    Args:
        module: attention with timm's switch `fused_attn`, which is off meanwhile, and `attn_drop`.
    """

    def before(_: Any, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim == 3:
            batch, num_tokens, _ = inputs[0].shape
            _refuse_large(batch, module.num_heads, num_tokens, num_tokens)

    def weights_pass(_: Any, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    was_fused = module.fused_attn
    module.fused_attn = False
    try:
        with module.register_forward_pre_hook(before), module.attn_drop.register_forward_pre_hook(weights_pass):
            yield
    finally:
        module.fused_attn = was_fused


def _keep_performer(keep: Keep, name: str, mixer: PerformerMixer, q: Tensor, k: Tensor) -> None:
    keep(name, PerformerMap(*performer_features(q, k, mixer.w)))


def _keep_softmax(keep: Keep, name: str, module: SoftmaxAttention, q: Tensor, k: Tensor) -> None:
    B, N, C = q.shape
    q, k = (x.reshape(B, N, module.num_heads, C // module.num_heads).transpose(1, 2) for x in (q, k))
    keep(name, SoftmaxMap(q, k, module.scale))


def _keep_stored(keep: Keep, name: str, weights: Tensor) -> None:
    if weights.ndim == 4 and weights.shape[2] == weights.shape[3]:  # else some tokens alone ask, or alone answer
        keep(name, StoredMap(weights))


def _refuse_large(batch: int, num_heads: int, num_queries: int, num_keys: int) -> None:
    num_weights = batch * num_heads * num_queries * num_keys
    if num_weights > MAX_WEIGHTS:
        raise AttentionTooLarge(
            f"The attention of {num_queries:,} queries to {num_keys:,} tokens, {batch} images, {num_heads} heads, "
            f"would take {num_weights * 4 / 2**30:.1f} GiB: choose queries, such as "
            'queries=["class", (x, y)], or smaller images.'
        )
