"""Servers of trackers: whether one answers, asked before its library is, which may try for minutes."""

from __future__ import annotations

import ssl
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import Request, urlopen

_TIMEOUT_S = 10.0


def check_answers(url: str) -> None:
    """Ask for a page and be content with any answer below 500.

    Proxies of the environment are used. What only the library can settle (certificates) is left to it.

    Raises:
        ConnectionError: there is no answer within ten seconds, or the server says that it is in trouble.
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
