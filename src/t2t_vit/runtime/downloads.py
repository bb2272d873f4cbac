"""Files from http(s) addresses."""

import http.client
import time
import urllib.request

from t2t_vit.errors import UserError
from t2t_vit.options import URLS

TIMEOUT_S = 30
MAX_BYTES = 100_000_000
"""More than any camera's image. What an address gives is unknown until it is read."""


def is_url(word: str) -> bool:
    """Whether it is an http(s) address, and no path."""
    return word.startswith(URLS)


def read_url(url: str, *, max_bytes: int = MAX_BYTES, timeout_s: float = TIMEOUT_S) -> bytes:
    """What lies at an http(s) address.

    Args:
        url: the address.
        max_bytes: of larger files nothing is returned.
        timeout_s: for the whole of it.

    Raises:
        UserError: nothing comes, too much or too slowly; the message says so without the address.
    """
    deadline = time.monotonic() + timeout_s
    request = urllib.request.Request(url, headers={"User-Agent": "t2t-vit"})  # some servers refuse Python's own
    content = b""
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            while piece := response.read1(1 << 16):
                content += piece
                if len(content) > max_bytes:
                    raise UserError(f"it is larger than {max_bytes / 1e6:.0f} MB")
                if time.monotonic() > deadline:
                    raise UserError(f"it did not come within {timeout_s:.0f} s")
    except UserError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"it could not be downloaded: {getattr(error, 'reason', None) or error}") from error
    return content
