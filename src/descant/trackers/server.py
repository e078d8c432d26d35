"""A check that a tracker's server answers, made before its library is started, which may try for minutes."""

from __future__ import annotations

import ssl
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

_TIMEOUT_S = 10.0


def check_answers(url: str) -> None:
    """Request a page; any status below 500 will do.

    Proxies of the environment are used. Problems that only the library can solve (certificates) are left to it.

    Raises:
        ConnectionError: there is no answer within ten seconds, or it is an error of the server.
    """
    url = address_of(url)
    try:
        urlopen(Request(url, headers={"User-Agent": "descant"}), timeout=_TIMEOUT_S).close()
    except HTTPError as error:
        error.close()
        if error.code >= 500:
            raise ConnectionError(f"{url} answers {error.code}") from error
    except (OSError, ValueError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, ssl.SSLError):
            raise ConnectionError(f"{url} does not answer: {reason}") from error


def address_of(url: str) -> str:
    """The URL without a user and password, and without a slash at its end."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
