"""Where W&B is and whether somebody is logged in there, without importing wandb, which takes long."""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

_DEFAULT_ADDRESS = "https://api.wandb.ai"


def is_online() -> bool:
    """Whether W&B sends what it is given. Otherwise it writes to files only, or, if "disabled", nowhere."""
    return os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled")


def wandb_address() -> str:
    """``WANDB_BASE_URL``, or what ``wandb login --host`` has written to W&B's settings, or W&B's own."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(folder / "settings", encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError):
        settings.clear()
    recorded = settings.get("default", "base_url", fallback="")
    return os.environ.get("WANDB_BASE_URL") or recorded or _DEFAULT_ADDRESS


def has_wandb_login() -> bool:
    """Whether there is a key: ``WANDB_API_KEY`` or ``WANDB_IDENTITY_TOKEN_FILE`` is set, or it is where ``wandb login``
    puts it, in the netrc file (``NETRC``, ``~/.netrc``)."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        paths = [Path(given)] if (given := os.environ.get("NETRC")) else [Path("~/.netrc"), Path("~/_netrc")]
        path = next((path.expanduser() for path in paths if path.expanduser().exists()), None)
        found = None if path is None else netrc.netrc(path).authenticators(urlsplit(wandb_address()).netloc)
    except (netrc.NetrcParseError, OSError, RuntimeError, UnicodeDecodeError):
        return False
    return found is not None and bool(found[2])
