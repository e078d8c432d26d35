"""What a run ran in: versions, machine, git commit, command line, recipe; secrets are masked."""

from __future__ import annotations

import inspect
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

MASK = "***"
_PACKAGES = ("descant", "torch", "transformers", "tokenizers", "numpy", "peft", "datasets")
_GIT_TIMEOUT_S = 2.0
_SECRET_WORDS = {"password", "passwords", "passwd", "pwd", "passphrase", "secret", "secrets", "apikey", "apikeys"}
_SECRET_WORDS |= {"credential", "credentials", "authorization", "bearer", "cookie", "cookies"}
_KINDS_OF_KEYS = {"api", "access", "private", "secret", "auth", "account", "service", "encryption", "signing", "ssh"}
_KINDS_OF_KEYS |= {"deploy", "license", "subscription", "openai", "anthropic", "wandb", "hf", "azure", "aws"}
_TOKENS_OF_TEXT = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "stop", "end", "start", "image", "special", "per"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s?#]+@")
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_|sk-|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abp]-|AKIA|AIza|wandb_v1_)[A-Za-z0-9_-]{12,}"
    r"|(?<=\bBearer )[^\s'\",]{16,}|(?<=\bAuthorization: Basic )[^\s'\",]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
)
_ASSIGNED = re.compile(  # as in URLs, JSON, the repr of objects and shells; prose has no = and no quotes there
    r"""(?<![\w.-])(?P<key>[\w.-]+)(?P<sign>=|["']\s*:\s*(?=["']))(?:(?P<quote>["']).*?(?P=quote)|[^\s"'&,;)}\]]+)"""
)

recipe_of_run: ContextVar[Mapping[str, Any] | None] = ContextVar("recipe_of_run", default=None)
"""The recipe that is running, its name and config, set by whoever runs it."""


def describe_environment() -> dict[str, Any]:
    """Versions, platform, devices (if torch is loaded already), git commit, command line and recipe, for the run log.

    Nothing heavy is imported, and what cannot be found out is left out. Values that look like secrets are masked.
    It starts ``git``, so it may take up to some seconds: keep it off an event loop.
    """
    found = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES if _version(name)},
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "devices": _devices(),
        "git": _describe_git(),
        "working_dir": str(Path.cwd()),
        "command_line": mask_arguments(sys.argv),
        "recipe": recipe_of_run.get(),
    }
    return {key: masked(value) for key, value in found.items() if value is not None}


def plain_settings(configured: object) -> dict[str, Any]:
    """Arguments of an object's constructors, its bases' too, that it keeps under their names: plain values, paths."""
    settings: dict[str, Any] = {}
    constructors = [vars(base)["__init__"] for base in type(configured).__mro__[:-1] if "__init__" in vars(base)]
    for name in dict.fromkeys(name for init in constructors for name in inspect.signature(init).parameters):
        value = inspect.getattr_static(configured, name, None)
        if isinstance(value, Path):
            value = str(value.absolute())
        if isinstance(value, str | int | float | bool):
            settings[name] = masked(value, name)
    return settings


def plain_config(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings as values that JSON can hold, secrets masked: other objects are their ``repr``, keys and paths
    are text."""
    return {str(key): masked(value, str(key)) for key, value in _plain(config, frozenset()).items()}


def _plain(value: Any, outer: frozenset[int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, int | float):
        return value
    if isinstance(value, Mapping | list | tuple) and id(value) not in outer:
        outer |= {id(value)}
        if isinstance(value, Mapping):
            return {_plain(str(name), outer): _plain(item, outer) for name, item in value.items()}
        return [_plain(item, outer) for item in value]
    return _plain(str(value) if isinstance(value, Path) else repr(value), outer)


def masked(value: Any, key: str = "") -> Any:
    """A copy of nested settings in which ``***`` stands for what looks like a secret.

    That is: everything under a key such as ``api_key``, ``hf_token``, ``password`` (not ``num_tokens`` or
    ``pad_token``), or behind it in a pair or in text (``?token=...``, ``Client(api_key='...')``), the credentials in a
    URL, and words that begin as tokens of well-known services do.
    """
    if value is not None and value != "" and not isinstance(value, bool) and is_secret(key):
        return MASK
    if isinstance(value, Mapping):
        return {name: masked(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == 2 and isinstance(value[0], str):  # a header, say
            return [masked(value[0]), masked(value[1], value[0])]
        return [masked(item) for item in value]
    if isinstance(value, str):
        text = _KNOWN_TOKEN.sub(MASK, _URL_CREDENTIALS.sub(f"{MASK}@", value))
        return _ASSIGNED.sub(_mask_assigned, text) if "=" in text or ":" in text else text
    return value


def _mask_assigned(found: re.Match[str]) -> str:
    if not is_secret(found["key"]):
        return found[0]
    quote = found["quote"] or ""
    return f"{found['key']}{found['sign']}{quote}{MASK}{quote}"


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line in which secrets are masked: ``--api-key X``, ``--set judge.token=X``, ``TOKEN=X``."""
    shown: list[str] = []
    for position, argument in enumerate(arguments):
        before = arguments[position - 1] if position else ""
        key, equals, value = argument.partition("=")
        if equals and is_secret(key):
            shown.append(f"{key}={MASK}" if value else argument)
        elif before.startswith("-") and "=" not in before and not argument.startswith("-") and is_secret(before):
            shown.append(MASK)
        else:
            shown.append(masked(argument))
    return shown


def is_secret(key: str) -> bool:
    """Whether a key is called as secrets are."""
    words = [word.lower() for word in _WORD.findall(key)]
    if "token" in words and not _TOKENS_OF_TEXT & set(words):
        return True
    return bool(_SECRET_WORDS & set(words)) or any(
        word in _KINDS_OF_KEYS and after in ("key", "keys") for word, after in pairwise(words)
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str] | None:
    """The names of the accelerators, if torch is there already."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):
        return None
    try:
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["cpu"]
    except RuntimeError:  # a driver that does not work is not what this is about
        return None


def _describe_git() -> dict[str, Any] | None:
    """The commit of the working directory and whether tracked files differ from it; None outside of a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit} if changes is None else {"commit": commit, "is_dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
