"""T2T-ViT: tokens-to-token module, then a deep and narrow transformer (Yuan et al., ICCV 2021, arXiv 2101.11986)."""

import math
from collections.abc import Sequence
from typing import Any, Final, Literal, cast

import torch
from timm.layers import get_device_dtype, global_pool_nlc, to_2tuple, trunc_normal_
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from t2t_vit.errors import UserError
from t2t_vit.models.blocks import Transition, build_backbone
from t2t_vit.models.positions import resample_positions, sinusoid_table
from t2t_vit.models.splits import PAPER_SPLITS, grid_size
from t2t_vit.models.tokens import build_tokens

POOLS = ("token", "avg", "avgmax", "max", "")


class T2TViT(nn.Module):
    """Tokens-to-Token Vision Transformer with timm's model protocol; parameters bear the official network's names.

    Args:
        img_size: side, or (H, W), of the images in pixels; any size that the splits can take.
        in_chans: channels of the images.
        num_classes: classes of the head; 0 returns pooled features.
        global_pool: the head's input: "token" (the class token, as in the paper); "avg", "avgmax" or "max" over the
            other tokens; "" for all tokens.
        tokens: the module that makes tokens: "performer" or "transformer" (T2T with that token transformer),
            "convolution" (three convolutions, table 7 of the paper) or "patch" (hard patches, no T2T).
        token_dim: width inside the T2T module.
        splits: kernel, stride and padding of the three soft splits.
        embed_dim: width of the backbone.
        depth: number of blocks; for dense blocks the number in each stage.
        num_heads: attention heads of a block.
        mlp_ratio: width of a block's hidden layer over its own.
        block: kind of block: "plain", "se", "ghost", "dense" or "local".
        growth_rate: channels that a dense block adds.
        qkv_bias: whether queries, keys and values have a bias.
        drop_rate: dropout before the head.
        pos_drop_rate: dropout after the positions are added.
        token_drop_rate: dropout in the token transformers; None takes the official code's.
        proj_drop_rate: dropout after attention's projection and in the MLPs.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first.
        dynamic_img_size: take images of any size, and resample the positions for each batch.

    Raises:
        UserError: settings do not fit together, or the image size is too small for the splits.
    """

    dynamic_img_size: Final[bool]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Literal["token", "avg", "avgmax", "max", ""] = "token",
        *,
        tokens: str = "performer",
        token_dim: int = 64,
        splits: Sequence[Sequence[int]] = PAPER_SPLITS,
        embed_dim: int = 384,
        depth: int | Sequence[int] = 14,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        block: str = "plain",
        growth_rate: int = 0,
        qkv_bias: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        token_drop_rate: float | None = None,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = self._known_pool(global_pool)
        self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False

        self.tokens_to_token = build_tokens(
            tokens,
            in_chans,
            embed_dim,
            token_dim=token_dim,
            splits=splits,
            token_drop_rate=token_drop_rate,
            **factory,
        )
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.grid_size = grid_size(self.img_size, self.tokens_to_token.splits)
        num_positions = 1 + self.grid_size[0] * self.grid_size[1]

        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **factory))
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", torch.empty(1, num_positions, embed_dim, **factory))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = build_backbone(
            block,
            embed_dim,
            depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            growth_rate=growth_rate,
            qkv_bias=qkv_bias,
            proj_drop=proj_drop_rate,
            attn_drop=attn_drop_rate,
            drop_path=drop_path_rate,
            **factory,
        )
        self._describe_blocks()
        self.norm: nn.Module = nn.LayerNorm(self.num_features, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._new_head(**factory)
        self.init_weights(needs_reset=False)

    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialises every tensor as the official code does.

        Args:
            needs_reset: also call the other modules' `reset_parameters`, as needed after `to_empty`.
        """
        if self.cls_token.is_meta:  # nothing to initialise
            return
        trunc_normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            self.pos_embed.copy_(sinusoid_table(self.pos_embed.shape[1], self.embed_dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif needs_reset and callable(reset := getattr(module, "reset_parameters", None)):
                reset()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        return {"cls_token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How parameters belong to layers, for layer-wise learning rates."""
        return {"stem": r"^cls_token|tokens_to_token", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block's activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str) -> None:
        """Loads a checkpoint of any known format; timm calls this for `pretrained=True`."""
        from t2t_vit.models.weights import load_checkpoint  # here, because weights imports this module

        load_checkpoint(self, checkpoint_path)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Makes a new head; `num_classes` of 0 removes it, `global_pool` of None keeps the pooling."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self._known_pool(global_pool)
        self.head = self._new_head(**get_device_dtype(self))
        self.head.train(self.training)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Changes the size of the images, a side or (H, W) in pixels, and resamples the positions to their grid."""
        self.img_size = to_2tuple(img_size)
        old_grid, self.grid_size = self.grid_size, grid_size(self.img_size, self.tokens_to_token.splits)
        self.pos_embed = resample_positions(self.pos_embed, old_grid, self.grid_size)
        update_model_input_size(self, self.img_size)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """The tokens after chosen blocks.

        Args:
            x: images, (B, C, H, W), normalised.
            indices: the blocks, not counting transitions: a list, a number for the last so many, None for all.
            return_prefix_tokens: pair each map with its class token, (B, 1, D).
            norm: apply the final norm to each.
            stop_early: do not run the blocks after the last chosen one.
            output_fmt: "NCHW" for maps (B, D, h, w), "NLC" for tokens (B, h * w, D).
            intermediates_only: leave out the final features.

        Returns:
            The final features (B, N, D) and the list of intermediates, or that list alone.

        Raises:
            UserError: `norm` does not fit the width of a chosen block.
        """
        assert output_fmt in ("NCHW", "NLC"), "Output format must be one of NCHW or NLC."
        take, last = feature_take_indices(len(self.taps), indices)
        wanted = [self.taps[i] for i in take]
        grid = self._grid_of(x)
        x = self._embed(x)
        intermediates = []
        for i, block in enumerate(self.blocks[: self.taps[last] + 1] if stop_early else self.blocks):
            x = checkpoint(block, x, grid) if self.grad_checkpointing else block(x, grid)
            if i in wanted:
                if norm and x.shape[-1] != self.num_features:
                    raise UserError(
                        f"Block {i} makes {x.shape[-1]} channels, the final norm takes {self.num_features}: "
                        "ask for norm=False."
                    )
                intermediates.append(self.norm(x) if norm else x)

        prefix = [tokens[:, : self.num_prefix_tokens] for tokens in intermediates]
        intermediates = [tokens[:, self.num_prefix_tokens :] for tokens in intermediates]  # (B, h * w, D)
        if output_fmt == "NCHW":
            intermediates = [
                tokens.transpose(1, 2).unflatten(2, grid).contiguous() for tokens in intermediates
            ]  # (B, D, h, w)
        result: list[Any] = list(zip(intermediates, prefix, strict=True)) if return_prefix_tokens else intermediates
        return result if intermediates_only else (self.norm(x), result)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the layers that the chosen blocks do not need.

        Args:
            indices: the blocks, as for `forward_intermediates`.
            prune_norm: drop the final norm; one that no longer fits the width is always dropped.
            prune_head: drop the head and the pooling.

        Returns:
            The indices of the chosen blocks in the pruned network.
        """
        take, last = feature_take_indices(len(self.taps), indices)
        self.blocks = self.blocks[: self.taps[last] + 1]
        old_width = self.num_features
        self._describe_blocks()
        if prune_norm or self.num_features != old_width:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """The tokens after the final norm, (B, 1 + h * w, num_features), the class token first.

        Args:
            x: images, (B, C, H, W), normalised.
        """
        grid = self._grid_of(x)
        x = self._embed(x)
        for block in self.blocks:
            # a statement, for TorchScript would compile both sides of an expression
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, grid)
            else:
                x = block(x, grid)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools tokens, (B, 1 + h * w, num_features), and returns logits, (B, num_classes).

        Args:
            x: the tokens.
            pre_logits: return the pooled features, (B, num_features), instead.
        """
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, num_classes), of images (B, C, H, W), normalised."""
        return self.forward_head(self.forward_features(x))

    def _embed(self, x: Tensor) -> Tensor:
        pos_embed = self.pos_embed
        if self.dynamic_img_size:
            pos_embed = resample_positions(pos_embed, self.grid_size, self._grid_of(x))
        else:
            advice = f"does not fit: the model takes {self.img_size}; see set_input_size, dynamic_img_size."
            torch._assert(x.shape[-2] == self.img_size[0], f"Image height {advice}")
            torch._assert(x.shape[-1] == self.img_size[1], f"Image width {advice}")
        x = self.tokens_to_token(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # (B, 1 + h * w, D)
        return self.pos_drop(x + pos_embed)

    def _grid_of(self, x: Tensor) -> tuple[int, int]:
        if not self.dynamic_img_size:
            return self.grid_size
        return grid_size((x.shape[-2], x.shape[-1]), self.tokens_to_token.splits)

    def _describe_blocks(self) -> None:
        """Notes which blocks are taps (all but transitions), and the width of the last one's output."""
        widths = [cast(int, block.out_dim) for block in self.blocks]
        self.taps = [i for i, block in enumerate(self.blocks) if not isinstance(block, Transition)]
        self.num_features = self.head_hidden_size = widths[-1]
        reduction = math.prod(stride for _, stride, _ in self.tokens_to_token.splits)
        self.feature_info = [{"module": f"blocks.{i}", "num_chs": widths[i], "reduction": reduction} for i in self.taps]

    def _new_head(self, **factory: Any) -> nn.Module:
        return nn.Linear(self.num_features, self.num_classes, **factory) if self.num_classes > 0 else nn.Identity()

    @staticmethod
    def _known_pool(global_pool: str) -> str:
        if global_pool not in POOLS:
            raise UserError(f"global_pool is one of {POOLS}, got {global_pool!r}.")
        return global_pool
