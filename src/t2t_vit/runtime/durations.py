"""Times as a person writes and reads them."""

import re
from collections.abc import Iterator


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 90s, 20m, 1h30m; a bare number counts seconds.

    Raises:
        ValueError: the text is no duration, or none above zero.
    """
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text.strip().lower())
    parts = zip(found.groups(), (3600, 60, 1), strict=True) if found else ()
    seconds = sum(float(count) * unit for count, unit in parts if count)
    if seconds <= 0:
        raise ValueError(f"expected a duration such as 90s, 20m or 1h30m, got {text!r}")
    return seconds


def wrong_duration(flag: str, text: str | None) -> Iterator[str]:
    """A sentence on the value of a flag that is no duration; nothing for one that is, or for None."""
    if text is None:
        return
    try:
        parse_duration(text)
    except ValueError as error:
        yield f"{flag}: {error}."


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
