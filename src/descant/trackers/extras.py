"""Packages that descant uses where they are installed: each is an extra of the same name."""

from __future__ import annotations

from importlib.util import find_spec

from descant.errors import ConfigurationError


def require_extra(package: str, user: str) -> None:
    """Refuse to go on without a package, which is looked for and not imported.

    Args:
        package: its name, which is also the name of descant's extra.
        user: what needs it, for the message.

    Raises:
        ConfigurationError: it is not installed; the message has the command that installs it.
    """
    if find_spec(package) is None:
        raise ConfigurationError(f"{user} needs {package}, which is not installed: pip install 'descant[{package}]'")
