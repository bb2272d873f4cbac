"""Images that look wrong: twice there, mislabelled, blank, tiny, of odd shape or unreadable; as a list to look through.

A list is a proposal. What stays in it when a person has looked is what `--exclude` leaves out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from t2t_vit.data.duplicates import equal_images, near_images
from t2t_vit.data.labels import doubtful_labels
from t2t_vit.data.looks import Look, Looks
from t2t_vit.data.statistics import spread

UNREADABLE, BLANK, TINY, ODD_SHAPE = "unreadable", "blank", "tiny", "odd shape"
EXACT, NEAR, CONFLICT, WRONG_LABEL = "exact duplicate", "near duplicate", "duplicate with another label", "wrong label"
REASONS = (WRONG_LABEL, CONFLICT, EXACT, NEAR, UNREADABLE, BLANK, TINY, ODD_SHAPE)
"""In the order of the list: what harms most comes first."""
TIMES_SMALLER, TIMES_LONGER = 8, 3
"""How far the shorter side, or the longer over the shorter side, must be from what is usual."""
MAX_COMPARED = 20_000
"""Images among which near duplicates and wrong labels are looked for: the time grows with their square."""
MAX_CLASSES = 100
PARTS = ("test", "val", "train")
"""Of an image that is there twice, the first of these parts keeps its copy."""


COLUMNS = ("image", "part", "class", "reason", "detail", "like")


class Suspect(NamedTuple):
    """A row of suspects.csv.

    Attributes:
        image: its name.
        part: train, val or test.
        label: its class.
        reason: one of `REASONS`.
        detail: what was found, for a person.
        like: name of the image that it is a copy of, if it is one.
    """

    image: str
    part: str
    label: str
    reason: str
    detail: str
    like: str = ""


@dataclass(frozen=True)
class Suspects:
    """What was found, and among how many images.

    Attributes:
        found: in the order of `REASONS`, the surest first.
        num_compared: images among which duplicates were looked for.
        labels_told: whether the labels could be judged.
    """

    found: tuple[Suspect, ...]
    num_compared: int
    labels_told: bool

    def count(self) -> dict[str, int]:
        """How many there are for each reason that there is."""
        counts = Counter(suspect.reason for suspect in self.found)
        return {reason: counts[reason] for reason in REASONS if counts[reason]}

    def __str__(self) -> str:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in self.count().items()) or "none"
        labels = "" if self.labels_told else "; labels not judged: too few images, or too hard for a simple classifier"
        return f"{counts}, among {self.num_compared:,} images{labels}"


def find_suspects(looks: Mapping[str, Looks], class_names: Sequence[str]) -> Suspects:
    """Looks through images for what is wrong with them.

    Args:
        looks: what decoding showed, by part: train, val and, where there is one, test.
        class_names: label to name.
    """
    placed = [(part, look) for part in PARTS if part in looks for _, look in sorted(looks[part].seen.items())]
    if len(placed) > MAX_COMPARED:
        chosen = np.sort(np.random.default_rng(0).permutation(len(placed))[:MAX_COMPARED])
        compared = [placed[row] for row in chosen.tolist()]
    else:
        compared = placed
    found = _strange_shapes(placed, class_names)
    found += [
        Suspect(error.name, part, class_names[of_part.images.labels[row]], UNREADABLE, error.reason)
        for part, of_part in looks.items()
        for row, error in sorted(of_part.unreadable.items())
    ]
    found += _duplicates(placed, compared, class_names)
    doubts = _wrong_labels(compared, class_names)
    found += doubts or []
    order = {reason: place for place, reason in enumerate(REASONS)}
    return Suspects(
        tuple(sorted(found, key=lambda suspect: order[suspect.reason])),
        num_compared=len(compared),
        labels_told=doubts is not None,
    )


Placed = tuple[str, Look]
"""The part that an image belongs to, and what it looks like."""


def _suspect(placed: Placed, class_names: Sequence[str], reason: str, detail: str, like: str = "") -> Suspect:
    part, look = placed
    return Suspect(look.name, part, class_names[look.label], reason, detail, like)


def _strange_shapes(placed: Sequence[Placed], class_names: Sequence[str]) -> list[Suspect]:
    if not placed:
        return []
    sides = np.array([sorted((look.height, look.width)) for _, look in placed], float)  # (N, 2): the shorter one first
    usual, elongation = np.median(sides[:, 0]), sides[:, 1] / sides[:, 0]
    found = []
    for one, (shorter, _), length in zip(placed, sides.tolist(), elongation.tolist(), strict=True):
        size = f"{one[1].height} x {one[1].width} pixels"
        if one[1].is_blank:
            found.append(_suspect(one, class_names, BLANK, "one colour all over"))
        if shorter < usual / TIMES_SMALLER:
            found.append(_suspect(one, class_names, TINY, f"{size}, where the shorter side usually has {usual:.0f}"))
        if length > TIMES_LONGER * np.median(elongation):
            found.append(_suspect(one, class_names, ODD_SHAPE, size))
    return found


def _duplicates(placed: Sequence[Placed], compared: Sequence[Placed], class_names: Sequence[str]) -> list[Suspect]:
    """Exact duplicates of all images, then near ones among one of each of those that are compared."""
    told = [one for one in placed if not one[1].is_blank]
    groups = [[told[position] for position in group] for group in equal_images([look.digest for _, look in told])]
    found = [suspect for group in groups for suspect in _copies(group, class_names, EXACT)]
    copies = {suspect.image for suspect in found}
    single = [one for one in compared if one[1].name not in copies and not one[1].is_blank]
    if single:
        tiny = in_bytes(np.stack([look.tiny for _, look in single]))
        near = [[single[position] for position in group] for group in near_images(tiny)]
        found += [suspect for group in near for suspect in _copies(group, class_names, NEAR)]
    return found


def _copies(group: Sequence[Placed], class_names: Sequence[str], reason: str) -> list[Suspect]:
    """All but the first of a group of copies, and those whose label is not that of most.

    Where no label is that of most, all are suspects, as any of them may be wrong.
    """
    labels = Counter(look.label for _, look in group)
    if len(labels) > 1:
        told = ", ".join(class_names[label] for label in labels)
        detail = f"{'the same' if reason == EXACT else 'nearly the same'} picture is in {told}"
        usual, count = labels.most_common(1)[0]
        most = [one for one in group if one[1].label == usual] if 2 * count > len(group) else []
        found = []
        for one in group:
            if one not in most:
                other = next(other for other in most or group if other[1].label != one[1].label)
                found.append(_suspect(one, class_names, CONFLICT, detail, other[1].name))
        return found + (_copies(most, class_names, reason) if most else [])
    first_part, first = group[0]
    return [
        _suspect(one, class_names, reason, f"is in {first_part} too" if one[0] != first_part else "", first.name)
        for one in group[1:]
    ]


def _wrong_labels(compared: Sequence[Placed], class_names: Sequence[str]) -> list[Suspect] | None:
    """Suspects among training and validation images; None where labels cannot be judged."""
    labels = sorted({look.label for part, look in compared if part != "test"})
    judged = {labels[place] for place in spread(len(labels), MAX_CLASSES)} if labels else set()
    of_them = [one for one in compared if one[0] != "test" and one[1].label in judged and not one[1].is_blank]
    if len(judged) < 2 or not of_them:
        return None
    copies = in_bytes(np.stack([look.copy for _, look in of_them]))
    doubts = doubtful_labels(copies, np.array([look.label for _, look in of_them]))
    if doubts is None:
        return None
    return [
        _suspect(
            of_them[doubt.position],
            class_names,
            WRONG_LABEL,
            f"looks like {class_names[doubt.label]}, {doubt.probability:.0%} against {doubt.own_probability:.0%}",
        )
        for doubt in doubts
    ]


def in_bytes(copies: np.ndarray) -> np.ndarray:
    """Copies with the spread that pictures have, from 0 to 255, where they are arrays in some other unit."""
    if copies.dtype == np.uint8:
        return copies
    return np.clip(128 + 64 * (copies - copies.mean()) / max(float(copies.std()), 1e-12), 0, 255)
