"""Files from a server on this machine."""

import time

import pytest

from t2t_vit.errors import UserError
from t2t_vit.runtime.downloads import read_url


def test_what_lies_there_is_returned(site):
    site.files["/a"] = bytes(range(256)) * 1000
    assert read_url(f"{site.url}/a", max_bytes=256_000) == site.files["/a"]


@pytest.mark.parametrize(
    ("path", "limits", "reason"),
    [
        ("/none", {}, "^it could not be downloaded: Not Found$"),
        ("/large", {"max_bytes": 199_999}, "^it is larger than 0 MB$"),
        ("/slow", {"timeout_s": 0.2}, "^it did not come within 0 s$"),
    ],
)
def test_what_cannot_be_had_is_told(site, path, limits, reason):
    site.files |= {"/large": bytes(200_000), "/slow": bytes(1000)}
    began = time.monotonic()
    with pytest.raises(UserError, match=reason):
        read_url(site.url + path, **limits)
    assert time.monotonic() - began < 5


def test_a_server_that_is_not_there():
    with pytest.raises(UserError, match=r"^it could not be downloaded: .*refused"):
        read_url("http://127.0.0.1:1/x.png")
