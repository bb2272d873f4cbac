"""Labelled images drawn from formulas: endless, of any size, from numbers alone.

The same numbers draw the same image on any machine, but for single pixels.

A class is a set of parameters of its family's program. An image of it is drawn with these disturbed, then coloured,
sometimes covered in part, blurred and made noisy. No photograph and no typeface is involved. The families:

- strokes: one to four cubic Bezier curves, mostly connected, as in handwritten signs (Lake et al. 2015, Science 350).
- contours: nested closed curves r(angle), filled or drawn (Kataoka et al. 2022, arXiv 2206.09132; Takashima et al.
  2023, arXiv 2303.01112).
- fractals: attractors of iterated function systems (Kataoka et al. 2020, arXiv 2101.08515), whose maps are drawn by
  their singular values (Anderson and Farrell 2022, arXiv 2110.03091). An image has its class's coefficients times
  U(0.9, 1.1) (Nakamura et al. 2024, arXiv 2409.19298, measured what that factor is worth).
- motifs: a small sign repeated over a lattice, in the colours of its class.
- waves: noise of a narrow band of orientations and frequencies, in the colours of its class (Baradad et al. 2021,
  arXiv 2106.05963).
- leaves: shapes that lie on one another, in the colours of their class (Lee et al. 2001, IJCV 41; Baradad et al. 2021).
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from t2t_vit.errors import UserError, closest

GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of splitmix64 (Steele et al. 2014), as signed numbers."""
LUMINANCE = (0.299, 0.587, 0.114)
LEAST_CONTRAST = 0.3
"""Least difference of luminance between ink and paper, both of 0 to 1."""
AHEAD = 128
"""Numbers of an image that are made at once, as a few take as long as these."""
NOISE_STARTS = 20_000
"""Places of a strip of noise at which the noise of an image's channel may begin."""


def _hash(z: Tensor) -> Tensor:
    """splitmix64's hash of int64 numbers."""
    z = (z ^ (z >> 30 & 0x3FFFFFFFF)) * FIRST
    z = (z ^ (z >> 27 & 0x1FFFFFFFFF)) * SECOND
    return z ^ (z >> 31 & 0x1FFFFFFFF)


class Numbers:
    """Random numbers of some images. Those of an image follow from its own keys alone, on any device.

    Args:
        keys: that together tell images apart: at least one tensor, (B,), int64, and numbers.
    """

    def __init__(self, *keys: Tensor | int) -> None:
        key: Tensor | int = 0
        for part in keys:
            key = _hash(torch.as_tensor(key * GOLDEN + part + 1))
        assert isinstance(key, Tensor)
        self.key = key
        self.num_drawn = 0
        self.ready, self.first_ready = torch.empty(len(key), 0, device=key.device), 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape), float32, evenly distributed from low to high."""
        first, last = self.num_drawn, self.num_drawn + math.prod(shape)
        if last > self.first_ready + self.ready.shape[1]:
            places = torch.arange(first, max(last, first + AHEAD), device=self.key.device)
            bits = _hash(self.key[:, None] + (places + 1) * GOLDEN) >> 40 & 0xFFFFFF
            self.ready, self.first_ready = bits.float(), first
        self.num_drawn = last
        ready = self.ready[:, first - self.first_ready : last - self.first_ready]
        return (ready * ((high - low) / 2**24)).add_(low).view(-1, *shape)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        """(B, *shape), float32, normally distributed, at most 5 standard deviations from 0."""
        return torch.erfinv(self.uniform(*shape, low=-1 + 1e-6, high=1 - 1e-6)).mul_(std * math.sqrt(2))

    def whole(self, *shape: int, low: int, high: int) -> Tensor:
        """(B, *shape), int64, from low to high, both included."""
        return self.uniform(*shape, low=low, high=high + 1 - 1e-4).long()

    def choose(self, *values: float) -> Tensor:
        """(B,), float32: one of the values each, all equally often."""
        chosen = self.whole(low=0, high=len(values) - 1)
        return torch.tensor(values, device=self.key.device)[chosen]

    def often(self, share: float, *shape: int) -> Tensor:
        """(B, *shape), bool: true in that share of the cases."""
        return self.uniform(*shape) < share


Layers = tuple[Tensor, Tensor, Tensor]
"""What is covered of images, (B, side, side) from 0 to 1, and their ink and paper, each (B, 3, side, side). A family
draws them from the numbers of the classes, those of the images, and the side in pixels."""


def _strokes(of_class: Numbers, of_image: Numbers, side: int) -> Layers:
    points = _moved(_sign(of_class, of_image, num_points=side, jitter=0.06), of_image)
    thinnest, thickest = 0.015, 0.11
    radius = of_image.uniform(low=thinnest, high=thickest)
    return _cover(points, radius, side, largest=thickest), *_any_ink_and_paper(of_image, side)


def _contours(of_class: Numbers, of_image: Numbers, side: int) -> Layers:
    corners = of_class.whole(1, low=2, high=7)
    order = torch.arange(1, 5, device=corners.device)
    amplitudes = of_class.uniform(4, low=-0.35, high=0.35) / order
    shifts = of_class.uniform(4, high=2 * math.pi)
    sharpness = of_class.uniform(1, low=0.0, high=0.35)
    rings = of_class.whole(low=1, high=4)
    share = of_class.uniform(low=0.35, high=1.0)
    drawn = of_class.often(0.5)
    amplitudes = amplitudes * of_image.uniform(4, low=0.8, high=1.2) + of_image.normal(4, std=0.02)
    grid = _unmoved(_pixels(side, corners.device), of_image)  # (B, side * side, 2)
    angle, radius = torch.atan2(grid[..., 1], grid[..., 0]), grid.norm(dim=-1)
    edge = 0.62 * (1 + sharpness * torch.cos(corners * angle + shifts[:, :1]))
    for place in range(4):
        edge = edge + 0.62 * amplitudes[:, place, None] * torch.cos((place + 1) * angle + shifts[:, place, None])
    distance = radius / edge.clamp(min=0.08)  # 1 on the outermost curve
    softness = 1.5 / (side * 0.31) * rings[:, None]
    phase = (distance * rings[:, None]) % 1
    width = torch.where(drawn, 0.12 * rings + 0.1, share)[:, None]
    inside = ((1 - distance) / softness * rings[:, None]).clamp(0, 1)
    ring = torch.minimum(phase - (1 - width), 1 - phase + softness).div(softness).clamp(0, 1)
    cover = torch.where(rings[:, None] == 1, torch.where(drawn[:, None], ring, torch.ones_like(ring)), ring) * inside
    return cover.view(-1, side, side), *_any_ink_and_paper(of_image, side)


def _fractals(of_class: Numbers, of_image: Numbers, side: int) -> Layers:
    num_walkers, num_steps, num_maps = 4 * side, 20, 4
    used = of_class.whole(1, low=2, high=num_maps)
    turns = of_class.uniform(num_maps, 2, high=2 * math.pi)
    least = of_class.uniform(num_maps, low=0.2, high=0.6)
    values = torch.stack([of_class.uniform(num_maps, low=0.55, high=0.85), least], dim=-1)
    values = values * torch.where(of_class.often(0.5, num_maps, 2), 1.0, -1.0)
    offsets = of_class.uniform(num_maps, 2, low=-1, high=1)
    maps = _rotation(turns[..., 0]) @ torch.diag_embed(values) @ _rotation(turns[..., 1])
    maps = maps * of_image.uniform(num_maps, 2, 2, low=0.9, high=1.1)
    offsets = offsets * of_image.uniform(num_maps, 2, low=0.9, high=1.1)
    walkers = of_image.uniform(num_walkers, 2, low=-1, high=1)
    rows = torch.arange(len(walkers), device=walkers.device)[:, None]
    choices = (of_image.uniform(num_steps, num_walkers) * used[..., None]).long()
    visited = []
    for step, chosen in enumerate(choices.unbind(1)):
        walkers = (maps[rows, chosen] @ walkers[..., None]).squeeze(-1) + offsets[rows, chosen]
        if step >= 8:  # by then they are near the attractor
            visited.append(walkers)
    points = torch.cat(visited, dim=1)
    points = points - points.mean(dim=1, keepdim=True)
    points = points / points.std(dim=(1, 2), keepdim=True).clamp(min=1e-3) * 0.38
    points = _moved(points, of_image)
    radius = torch.full_like(points[:, 0, 0], 0.3 / side)
    return _cover(points, radius, side, largest=0.3 / side), *_any_ink_and_paper(of_image, side)


def _motifs(of_class: Numbers, of_image: Numbers, side: int) -> Layers:
    sign = _sign(of_class, of_image, num_points=max(4, side // 6), jitter=0.04)
    spacing = 2 / of_class.uniform(1, 1, low=2.0, high=4.5)
    slant = of_class.uniform(low=-0.6, high=0.6)
    radius = of_class.uniform(low=0.04, high=0.1) * spacing[:, 0, 0]
    places = torch.arange(-2, 3, device=sign.device).float()
    lattice = (
        torch.stack(torch.meshgrid(places, places, indexing="ij"), dim=-1).view(1, 25, 2).expand(len(sign), -1, -1)
    )
    lattice = torch.stack([lattice[..., 0] + slant[:, None] * lattice[..., 1], lattice[..., 1]], dim=-1)
    lattice = lattice + of_image.normal(25, 2, std=0.05) + of_image.uniform(1, 2, low=-0.5, high=0.5)
    points = (lattice[:, :, None] * spacing[..., None] + sign[:, None] * (0.45 * spacing[..., None])).flatten(1, 2)
    points = _moved(points, of_image, shift=0.0)
    radius = radius * of_image.uniform(low=0.8, high=1.25)
    return _cover(points, radius, side, largest=0.08), *_ink_and_paper_of(of_class, of_image, side)


def _waves(of_class: Numbers, of_image: Numbers, side: int) -> Layers:
    num_waves = 8
    angle = of_class.uniform(1, high=math.pi) + of_image.normal(1, std=0.08)
    spread = of_class.uniform(1, low=0.02, high=0.9)
    frequency = of_class.uniform(1, low=math.log(2.0), high=math.log(16.0)) + of_image.normal(1, std=0.08)
    bandwidth = of_class.uniform(1, low=0.02, high=0.5)
    ridged = of_class.often(0.4)[:, None]
    hardness = of_class.uniform(1, low=1.2, high=4.0)
    angles = angle + spread * of_image.normal(num_waves)
    frequencies = (frequency + bandwidth * of_image.normal(num_waves)).exp() * math.pi
    phases = of_image.uniform(num_waves, high=2 * math.pi)
    pixels = _pixels(side, angle.device)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1) * frequencies[..., None]  # (B, num_waves, 2)
    height = torch.cos(directions @ pixels.T + phases[..., None]).sum(dim=1) / math.sqrt(num_waves / 2)
    height = torch.where(ridged, 1.2 - 2 * height.abs(), height)
    return torch.sigmoid(hardness * height).view(-1, side, side), *_ink_and_paper_of(of_class, of_image, side)


def _leaves(of_class: Numbers, of_image: Numbers, side: int) -> Layers:
    num_leaves, num_colours = 24, 5
    palette = of_class.uniform(num_colours, 3)
    pointed = of_class.choose(-4.0, 0.0, 0.0, 0.9, 1.0)[:, None, None]  # a star, discs, a soft and a sharp square
    typical, spread = of_class.uniform(1, low=-2.4, high=-1.0), of_class.uniform(1, low=0.05, high=0.7)
    size = typical + spread * of_image.normal(num_leaves)
    slimness = of_class.uniform(1, high=0.8) + of_image.normal(num_leaves, std=0.1)
    lean, order = of_class.uniform(1, high=math.pi), of_class.uniform(1, low=0.1, high=1.5)
    angle = lean + order * of_image.normal(num_leaves)
    middle = of_image.uniform(num_leaves, 2, low=-1.1, high=1.1)
    extent = torch.stack([size + slimness / 2, size - slimness / 2], dim=-1).exp()
    to_leaf = _rotation(-angle) / extent[..., None]  # (B, num_leaves, 2, 2), from the image to a leaf of -1 to 1
    along = (torch.arange(side, device=angle.device) + 0.5) * (2 / side) - 1 - middle[..., None]  # x and y, in steps
    # What x and y add to both places in the leaf, each (B, num_leaves, 2, side).
    of_x, of_y = (to_leaf[..., place, None] * along[:, :, place, None] for place in range(2))
    x2, y2 = (of_x[..., None, :] + of_y[..., None]).flatten(3).square_().unbind(2)  # (B, num_leaves, side * side)
    inside = (x2 < 1) & (y2 < 1) & (x2 + y2 - pointed * x2 * y2 < 1)
    number = torch.arange(1, num_leaves + 1, dtype=torch.uint8, device=angle.device)[:, None]
    topmost = (inside * number).amax(dim=1).long()  # 0 where there is no leaf
    chosen = of_image.whole(1 + num_leaves, low=0, high=num_colours - 1)
    colours = palette.gather(1, chosen[..., None].expand(-1, -1, 3)) + of_image.normal(1 + num_leaves, 3, std=0.06)
    colours = colours * of_image.uniform(1, 1, low=0.7, high=1.25)
    image = colours.clamp_(0, 1).mT.gather(2, topmost[:, None].expand(-1, 3, -1)).view(-1, 3, side, side)
    return torch.ones_like(image[:, 0]), image, image


FAMILIES: dict[str, Callable[[Numbers, Numbers, int], Layers]] = {
    "strokes": _strokes,
    "contours": _contours,
    "fractals": _fractals,
    "motifs": _motifs,
    "waves": _waves,
    "leaves": _leaves,
}


def draw(
    family: str,
    classes: Tensor,
    instances: Tensor,
    *,
    side: int,
    seed: int = 0,
) -> Tensor:
    """Images of a family's classes. The same numbers draw the same image, whichever others are drawn beside it.

    Args:
        family: one of `FAMILIES`.
        classes, instances: the class and the number of each image, (B,), int64, at least 0; drawn on their device.
        side: of the images, in pixels.
        seed: another one makes other classes.

    Returns:
        (B, 3, side, side), uint8, channels last in memory.

    Raises:
        UserError: there is no such family.
    """
    if family not in FAMILIES:
        raise UserError(closest(family, FAMILIES, "family"))
    number = list(FAMILIES).index(family)
    of_class = Numbers(seed, torch.full_like(classes, number), classes)
    of_image = Numbers(seed, torch.full_like(classes, number), classes, instances)
    cover, ink, paper = FAMILIES[family](of_class, of_image, side)
    image = torch.lerp(paper, ink, cover[:, None])
    image = _noisy(_blurred(_covered(image, of_image), of_image), of_image)
    return (image.clamp_(0, 1) * 255).round_().to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _sign(of_class: Numbers, of_image: Numbers, *, num_points: int, jitter: float) -> Tensor:
    """The points of one to four curves, (B, 4 * num_points, 2), from -0.85 to 0.85 in their longer direction."""
    ends = of_class.uniform(4, 4, 2, low=-0.85, high=0.85)  # of four curves the four control points
    used = of_class.whole(1, low=1, high=4)
    joined = of_class.often(0.7, 4)
    joint = of_class.whole(4, low=0, high=3)
    ends = ends + of_image.normal(4, 4, 2, std=jitter)
    for curve in range(1, 4):  # a joined curve begins at a control point of the one before
        begin = ends[:, curve - 1].gather(1, joint[:, curve, None, None].expand(-1, 1, 2))[:, 0]
        ends[:, curve, 0] = torch.where(joined[:, curve, None], begin, ends[:, curve, 0])
    t = torch.linspace(0, 1, num_points, device=ends.device)[:, None]
    weights = torch.cat([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], dim=1)  # (num_points, 4)
    curves = weights @ ends  # (B, 4, num_points, 2)
    unused = torch.arange(4, device=ends.device) >= used  # they lie on the first curve
    points = torch.where(unused[..., None, None], curves[:, :1], curves).flatten(1, 2)
    least, largest = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
    return (points - (least + largest) / 2) * (1.7 / (largest - least).amax(dim=2, keepdim=True))


def _motion(of_image: Numbers, shift: float) -> tuple[Tensor, Tensor]:
    """A random turn, zoom, slant and shift: matrices (B, 2, 2) and offsets (B, 1, 2)."""
    turn = of_image.normal(std=0.15)
    zoom = of_image.uniform(2, low=0.75, high=1.05) * of_image.uniform(1, low=0.7, high=1.05)
    slant = of_image.normal(std=0.12)
    slants = torch.diag_embed(torch.ones_like(zoom))
    slants[:, 0, 1] = slant
    return _rotation(turn) @ slants @ torch.diag_embed(zoom), of_image.uniform(1, 2, low=-shift, high=shift)


def _moved(points: Tensor, of_image: Numbers, shift: float = 0.2) -> Tensor:
    matrices, offsets = _motion(of_image, shift)
    return points @ matrices.mT + offsets


def _unmoved(points: Tensor, of_image: Numbers, shift: float = 0.2) -> Tensor:
    """Where the points of the image, (P, 2), lie in what was moved, (B, P, 2)."""
    matrices, offsets = _motion(of_image, shift)
    (a, b), (c, d) = matrices.unbind(1)[0].unbind(1), matrices.unbind(1)[1].unbind(1)
    inverse = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1) / (a * d - b * c)[:, None, None]
    return (points - offsets) @ inverse.mT


def _rotation(angle: Tensor) -> Tensor:
    """(...) to (..., 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def _pixels(side: int, device: torch.device) -> Tensor:
    """The middles of an image's pixels, row by row, (side * side, 2), as x and y from -1 to 1."""
    middles = (torch.arange(side, device=device) + 0.5) * (2 / side) - 1
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def _cover(points: Tensor, radius: Tensor, side: int, *, largest: float) -> Tensor:
    """How much of each pixel is covered by discs around points.

    Args:
        points: (B, P, 2), as x and y from -1 to 1.
        radius: of the discs, (B,), in the same unit.
        largest: about the largest radius, which decides how many dots make a disc.

    Returns:
        (B, side, side), from 0 to 1, in quarters.
    """
    fine = 2 * side
    num_dots = max(1, round((largest * side) ** 2))
    place = torch.arange(num_dots, device=points.device)
    angle = place * (math.pi * (3 - math.sqrt(5)))  # a sunflower's dots fill a disc evenly
    dots = torch.stack([angle.cos(), angle.sin()], -1) * ((place + 0.5) / num_dots).sqrt()[:, None]
    spots = points[:, :, None] * side + radius[:, None, None, None] * dots * side + side
    spots = spots.to(torch.int32)
    x, y = spots[..., 0].flatten(1), spots[..., 1].flatten(1)
    wide = fine + 2  # what lies outside goes to a border, which is thrown away
    row = torch.arange(len(points), device=points.device, dtype=torch.int32)[:, None]
    flat = (row * wide + y.clamp(-1, fine) + 1) * wide + x.clamp(-1, fine) + 1
    canvas = torch.zeros(len(points) * wide * wide, device=points.device)
    canvas.index_fill_(0, flat.flatten().long(), 1.0)
    return F.avg_pool2d(canvas.view(-1, 1, wide, wide)[..., 1:-1, 1:-1], 2)[:, 0]


def _luminance(colour: Tensor) -> Tensor:
    """(B, 3) to (B, 1)."""
    return colour @ torch.tensor(LUMINANCE, device=colour.device)[:, None]


def _readable(ink: Tensor, paper: Tensor) -> Tensor:
    """Ink that differs from the paper, both (B, 3): black or white where it did not."""
    bright = _luminance(paper)
    return torch.where((_luminance(ink) - bright).abs() < LEAST_CONTRAST, (bright < 0.5).float(), ink)


def _any_ink_and_paper(of_image: Numbers, side: int) -> tuple[Tensor, Tensor]:
    """Colours that say nothing of the class: in nearly half of the images shades of grey, on plain or shaded paper."""
    ink, paper, other = of_image.uniform(3, 3).unbind(1)
    grey = of_image.often(0.45, 1)
    ink, paper, other = (torch.where(grey, colour[:, :1], colour) for colour in (ink, paper, other))
    ink = _readable(ink, paper)
    shaded = of_image.often(0.4, 1)
    other = torch.where(shaded, paper + (other - paper) * of_image.uniform(1, high=0.5), paper)
    waves = of_image.normal(2, 2, std=3.0)
    height = torch.sin(waves @ _pixels(side, ink.device).T + of_image.uniform(2, 1, high=2 * math.pi)).mean(dim=1)
    mixed = torch.lerp(paper[..., None], other[..., None], height[:, None] / 2 + 0.5)
    return _plain(ink, side), mixed.view(-1, 3, side, side)


def _ink_and_paper_of(of_class: Numbers, of_image: Numbers, side: int) -> tuple[Tensor, Tensor]:
    """The colours of a class, a little disturbed."""
    ink, paper = of_class.uniform(2, 3).unbind(1)
    ink = _readable(ink, paper)
    light = of_image.uniform(1, low=0.75, high=1.25)
    ink, paper = (colour * light + of_image.normal(3, std=0.05) for colour in (ink, paper))
    return _plain(ink.clamp(0, 1), side), _plain(paper.clamp(0, 1), side)


def _plain(colour: Tensor, side: int) -> Tensor:
    """A colour, (B, 3), all over an image, (B, 3, side, side)."""
    return colour[..., None, None].expand(-1, -1, side, side)


def _covered(image: Tensor, of_image: Numbers) -> Tensor:
    """A tenth of the images with a rectangle of one colour somewhere."""
    side = image.shape[-1]
    hidden = of_image.often(0.1)
    size, corner = of_image.uniform(2, low=0.1, high=0.4), of_image.uniform(2, low=-0.1, high=0.9)
    colour = of_image.uniform(3)
    middles = (torch.arange(side, device=image.device) + 0.5) / side
    inside = (middles >= corner[..., None]) & (middles < (corner + size)[..., None])  # (B, 2, side)
    rows = hidden.nonzero()[:, 0]
    mask = inside[rows, 0, None, :, None] & inside[rows, 1, None, None, :]
    image[rows] = torch.where(mask, colour[rows, :, None, None], image[rows])
    return image


def _blurred(image: Tensor, of_image: Numbers) -> Tensor:
    """Three tenths of the images as if they had been photographed at a half to an eighth of the size."""
    side = image.shape[-1]
    factor = torch.where(of_image.often(0.3), of_image.choose(2, 4, 4, 8), 1.0)
    for times in (2, 4, 8):
        rows = (factor == times).nonzero()[:, 0]
        if len(rows):
            small = F.adaptive_avg_pool2d(image[rows], max(4, side // times))
            image[rows] = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
    return image


def _noisy(image: Tensor, of_image: Numbers) -> Tensor:
    """A fifth of the images with noise in each pixel."""
    side = image.shape[-1]
    strength, starts = of_image.uniform(low=0.02, high=0.12), of_image.whole(3, low=0, high=NOISE_STARTS - 1)
    rows = of_image.often(0.2).nonzero()[:, 0]
    noise = _noise(side * side, image.device).unfold(0, side * side, 1)[starts[rows]].view(-1, 3, side, side)
    image[rows] += strength[rows, None, None, None] * noise
    return image


@functools.cache
def _noise(length: int, device: torch.device) -> Tensor:
    """A strip of noise, of which each image takes parts of this length."""
    return Numbers(torch.zeros(1, dtype=torch.int64, device=device)).normal(NOISE_STARTS + length)[0]
