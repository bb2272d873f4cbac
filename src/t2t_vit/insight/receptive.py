"""What a token of the T2T module is made of: by geometry, and by the gradient that was measured."""

import contextlib
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from t2t_vit.insight.geometry import Grid
from t2t_vit.models.t2t_vit import T2TViT
from t2t_vit.models.tokens import TokensToToken

NUM_PROBES = 4


@dataclass(frozen=True)
class ReceptiveField:
    """Where a token after some soft splits looks.

    Attributes:
        name: of the module that returns the token.
        grid: of the tokens there.
        token: its number.
        energy: squared gradient of the token at each pixel, (H, W), the sum over its channels and the image's; it sums
            to one.
    """

    name: str
    grid: Grid
    token: int
    energy: Tensor

    @property
    def patch(self) -> tuple[int, int, int, int]:
        """The pixels that the token is made of, (left, top, right, bottom)."""
        return self.grid.patch_of(self.token)

    @property
    def share_in_patch(self) -> float:
        """The share of the energy that lies in the patch: 1 for a token that has seen nothing else."""
        left, top, right, bottom = self.patch
        return float(self.energy[top:bottom, left:right].sum())

    @property
    def share_of_area(self) -> float:
        """The patch's share of the image's area: what the share of the energy would be if all pixels counted alike."""
        left, top, right, bottom = self.patch
        return (right - left) * (bottom - top) / self.energy.numel()


def receptive_fields(model: T2TViT, image: Tensor, pixel: tuple[int, int]) -> list[ReceptiveField]:
    """The receptive field of the token at a pixel after each soft split; behind each but the last a token transformer.

    |J|^2 summed over a token's channels, where J is the Jacobian of the token, is estimated as the mean of |J^T z|^2
    over NUM_PROBES random vectors z of signs (Hutchinson's estimator), the same in every call.

    Args:
        model: a network whose tokens T2T makes, convolutions or hard patches, in evaluation mode.
        image: normalised, (1, C, H, W).
        pixel: (x, y).

    Raises:
        UserError: the pixel lies outside the image.
    """
    module, size = model.tokens_to_token, (image.shape[-2], image.shape[-1])
    names = [name for name, _ in module.named_children()]  # in the order of the splits, in each kind of tokens
    outputs: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for name, child in module.named_children():
            if not (isinstance(module, TokensToToken) and name == "project"):  # a linear layer that is not called
                keep = partial(_keep_output, outputs, name)
                stack.enter_context(child.register_forward_hook(keep))
        pixels = image.detach().requires_grad_()
        outputs[names[-1]] = module(pixels)
    generator = torch.Generator().manual_seed(0)
    fields = []
    for number, name in enumerate(names, start=1):
        grid = Grid.after(module.splits[:number], size)
        token = grid.token_at(*pixel)
        output = outputs[name]
        values = output[0, token] if output.ndim == 3 else output[0].flatten(1)[:, token]  # (channels,)
        energy = torch.zeros(size, device=image.device)
        for _ in range(NUM_PROBES):
            signs = torch.randint(0, 2, values.shape, generator=generator).to(values) * 2 - 1
            (gradient,) = torch.autograd.grad(values @ signs, pixels, retain_graph=True)
            energy += gradient[0].square().sum(dim=0)
        fields.append(ReceptiveField(f"tokens_to_token.{name}", grid, token, energy / energy.sum()))
    return fields


def _keep_output(outputs: dict[str, Tensor], name: str, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
    outputs[name] = output
