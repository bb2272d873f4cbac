"""The paper's fixed sinusoid table of positions, and its resampling to another grid."""

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def sinusoid_table(num_positions: int, dim: int) -> Tensor:
    """The position table of "Attention Is All You Need" (section 3.5): the class token's row, then the grid's.

    table[p, 2i] = sin(p / 10000^(2i / dim)) and table[p, 2i + 1] = cos(p / 10000^(2i / dim)), computed in float64 like
    the official network's, so that the float32 values agree to the last bit.

    Returns:
        (1, num_positions, dim), float32, on the CPU.
    """
    channel = torch.arange(dim, device="cpu")
    frequency = 10000.0 ** (-2.0 * (channel // 2).double() / dim)
    angle = torch.arange(num_positions, device="cpu").double()[:, None] * frequency
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return table.float()[None]


def resample_positions(pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resamples a position table to another grid, bicubically without antialiasing, as the official code does.

    Args:
        pos_embed: table, (1, 1 + h * w, D); its first row, the class token's, is kept.
        old_grid: (h, w) of the table.
        new_grid: (h, w) of the result.
    """
    return resample_abs_pos_embed(pos_embed, new_size=list(new_grid), old_size=list(old_grid), antialias=False)
