"""What a user reads when something they gave is wrong."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's: the message says what was expected, what came, and what to do."""


def closest(name: str, known: Iterable[str], what: str) -> str:
    """A sentence about an unknown name with the nearest known names, or the first of all if none is near.

    Args:
        what: the kind of thing, such as "model".
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    advice = f"Did you mean {' or '.join(near)}?" if near else f"Known: {abbreviate(names, limit=10)}."
    return f"Unknown {what} {name!r}. {advice}"


def abbreviate(words: Iterable[str], limit: int = 5, separator: str = ", ") -> str:
    """The first words, and how many more there are."""
    shown = list(words)
    return separator.join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")
