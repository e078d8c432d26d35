"""The provenance of a run: versions, machine, git commit, command line, recipe; secrets are masked.

A secret is known by its name (``api_key``, ``HF_TOKEN``, ``Authorization``), by its form (credentials in a URL, the
prefix of a service's tokens), or by its value: that of an environment variable whose name says that it is a secret, or
of a ``SecretStr`` in a recipe's config, is masked wherever it stands. What the model and the data say is content and
stays as it is.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

MASK = "***"
_PACKAGES = ("descant", "torch", "transformers", "tokenizers", "numpy", "peft", "datasets")
_GIT_TIMEOUT_S = 2.0
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_KEY = re.compile(  # of a key's words, joined by _: "OPENAI_API_KEY" and "openaiApiKey" are both openai_api_key
    r"(?:^|_)(?:pass(?:word|wd|phrase)s?|pwd|secrets?|credentials?|authorization|bearer|cookies?|apikeys?"
    r"|(?<!(?:pad|eos|bos|unk|sep|cls|end|per)_)(?<!(?:mask|stop)_)(?<!(?:start|image)_)(?<!special_)"
    r"(?<!(?:next|prev|mean|tool)_)(?<!(?:first|audio)_)(?<!last_)(?<!prefix_)token"
    r"(?!_(?:per|ids?|types?|budget|counts?|length|mean|accuracy|level|loss|probability|confidence|embeddings?)(?:_|$))"
    r"|(?:api|access|private|auth|account|service|encryption|signing|ssh|openai|anthropic|wandb|hf|azure|aws)_keys?"
    r"|(?:auth|sig|amz_signature)(?=$)"
    r")(?:_|$)"
)
_SECRET_TEXT = re.compile(
    r"(?<=://)[^/\s?#]+(?=@)"  # credentials in a URL
    r"|\b(?:hf_|sk-|sk_(?:live|test)_|gh[pousr]_|github_pat_|glpat-|xox[abp]-|xapp-|AKIA|AIza|ya29\.|wandb_v1_|nvapi-|gsk_)"
    r"[A-Za-z0-9_.-]{12,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON Web Token
    r"|(?<=\bBearer )[^\s'\",]{16,}|(?<=\bAuthorization: Basic )[^\s'\",]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
)
_ASSIGNED = re.compile(  # as in URLs, JSON, the repr of objects and shells; prose has no = and no quotes there
    r"""(?<![\w.-])(?P<key>[\w.-]+)(?P<sign>=|\\*["']\s*:\s*(?=\\*["']))"""
    r"""(?:(?P<quote>\\*["']).*?(?P=quote)|[^\s"'&,;)}\]]+)"""
)
_TOLD = re.compile(  # as in headers, YAML and command lines; prose has these, too, but seldom a word with a digit there
    r"""(?<![\w.-])(?P<key>--[\w-]+["',]*\s+["']?|[A-Za-z]\w*[_-][\w-]+:\s+|(?:Authorization|Cookie|password):\s+)"""
    r"""(?P<scheme>(?:Bearer|Basic|Token|Digest)\s+)?(?=[^\s"',;)}\]]*\d)[^\s"',;)}\]]{6,}"""
)
_NOT_THE_SECRET = ("file", "path", "dir", "url", "name", "id", "type", "sock")  # SECRET_FILE says where it is
_WORKING_DIRECTORIES = ("PWD", "OLDPWD")  # of a shell; in other names pwd is a password
_LEAST_SECRET = 8  # characters; what is shorter may well be an ordinary word
_SECRET_FIELD = "*" * 10
"""A ``pydantic.SecretStr`` in a config that was dumped."""

_secret_values: set[str] = set()

recipe_of_run: ContextVar[Mapping[str, Any] | None] = ContextVar("recipe_of_run", default=None)
"""The recipe that is running, with its name and config."""


def describe_environment() -> dict[str, Any]:
    """Versions, platform, devices (if torch is loaded already), git commit, command line and recipe, for the run log.

    Nothing heavy is imported, and what cannot be found out is left out. Values that look like secrets are masked.
    It starts ``git``, so it may take some seconds: call it off the event loop.
    """
    recipe = recipe_of_run.get()
    found = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES if _version(name)},
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "devices": _devices(),
        "git": _describe_git(),
        "working_dir": str(Path.cwd()),
        "command_line": mask_arguments(sys.argv, recipe and recipe["config"]),
        "recipe": recipe,
    }
    return {key: masked(value) for key, value in found.items() if value is not None}


def plain_config(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings as values that JSON can hold, secrets masked; see ``masked``."""
    return dict(masked(config))


def masked(value: Any, key: str = "", outer: frozenset[int] = frozenset()) -> Any:
    """Nested settings as values that JSON can hold, in which ``***`` replaces secrets.

    Secrets are: values under a key such as ``api_key``, ``hf_token``, ``password`` (not ``num_tokens`` or
    ``pad_token``), also in a pair or in text (``?token=...``, ``Client(api_key='...')``, ``x-api-key: ...``,
    ``--api-key ...``); the credentials in a URL; words with the prefix of a well-known service's tokens; and the values
    of environment variables with such a name. Keys and paths become text, other objects and mappings within themselves
    (``outer`` are those around the value) their ``repr``.
    """
    has_none = value is None or isinstance(value, bool) or (isinstance(value, str) and not value)
    if not has_none and is_secret(key):
        return MASK
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Mapping | list | tuple) and id(value) not in outer:
        outer |= {id(value)}
        if isinstance(value, Mapping):
            return {masked(str(name)): masked(item, str(name), outer) for name, item in value.items()}
        if len(value) == 2 and isinstance(value[0], str):  # a header, say
            return [masked(value[0]), masked(value[1], value[0], outer)]
        return [masked(item, outer=outer) for item in value]
    text = str.__str__(value) if isinstance(value, str) else str(value) if isinstance(value, Path) else repr(value)
    return masked_text(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def masked_text(text: str) -> str:
    """Text in which ``***`` replaces secrets: see ``masked``."""
    for secret in _known_secrets():
        text = text.replace(secret, MASK)
    text, end, parts = _SECRET_TEXT.sub(MASK, text), 0, []
    while found := _ASSIGNED.search(text, end):  # what is behind the first of several signs may be a name again
        quote = found["quote"] or ""
        is_masked = is_secret(found["key"])
        parts += [text[end : found.end("sign")], f"{quote}{MASK}{quote}" if is_masked else ""]
        end = found.end() if is_masked else found.end("sign")
    return _TOLD.sub(_mask_told, "".join([*parts, text[end:]]))


def _mask_told(found: re.Match[str]) -> str:
    return f"{found['key']}{found['scheme'] or ''}{MASK}" if is_secret(found["key"]) else found[0]


def remember_secrets(config: Any) -> None:
    """From here on, mask the values of every ``SecretStr`` in a config, wherever they stand."""
    if isinstance(config, Mapping | list | tuple):
        for item in config.values() if isinstance(config, Mapping) else config:
            remember_secrets(item)
    elif hasattr(config, "get_secret_value") and len(value := str(config.get_secret_value())) >= _LEAST_SECRET:
        _secret_values.add(value)


def _known_secrets() -> list[str]:
    """The values of secrets, the longest first."""
    of_environment = {
        value
        for name, value in os.environ.items()
        if len(value) >= _LEAST_SECRET
        and is_secret(name)
        and name not in _WORKING_DIRECTORIES
        and not name.lower().endswith(_NOT_THE_SECRET)
    }
    return sorted(of_environment | _secret_values, key=len, reverse=True)


def mask_arguments(arguments: Sequence[str], config: Mapping[str, Any] | None = None) -> list[str]:
    """A command line in which secrets are masked: ``--api-key X``, ``--set judge.token=X``, ``TOKEN=X``, and settings
    that are a ``SecretStr`` in the config."""
    shown: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.removeprefix("--set=").partition("=")
        if equals and (is_secret(key) or _SECRET_FIELD in repr(_value_at(config, key))):
            shown.append(argument.removesuffix(value) + (value and MASK))
        elif before.startswith("-") and "=" not in before and not argument.startswith("-") and is_secret(before):
            shown.append(MASK)
        else:
            shown.append(masked(argument))
    return shown


def _value_at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether a key names a secret."""
    return _SECRET_KEY.search("_".join(_WORD.findall(key)).lower()) is not None


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  # a fifth of importing the runner

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str] | None:
    """The names of the accelerators, if torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):
        return None
    try:
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] or ["cpu"]
    except RuntimeError:  # a broken driver is reported where the device is used
        return None


def _describe_git() -> dict[str, Any] | None:
    """The commit of the working directory and whether tracked files differ from it; None outside of a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit} if changes is None else {"commit": commit, "is_dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    no = subprocess.DEVNULL
    try:
        return subprocess.check_output(command, stdin=no, stderr=no, text=True, timeout=_GIT_TIMEOUT_S).strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
