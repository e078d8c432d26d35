"""Model files: what the directory of a saved model has in it, by name."""

from __future__ import annotations

import re
from pathlib import Path

from descant.errors import SaveError
from descant.text import quoted

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = re.compile(r"(model|adapter_model|pytorch_model|adapter_pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)")
_VOCABULARY = re.compile(
    r"tokenizer\.(json|model)|tekken\.json|(|target_|entity_)vocab(|-src|-tgt)\.(json|txt)|dict\.txt|.*\.tiktoken"
    r"|(spiece|sentencepiece|sentencepiece\.bpe|spm|spm_char)\.model|(source|target)\.spm|prophetnet\.tokenizer"
)
_OTHERS = re.compile(
    r"(config|generation_config|adapter_config)\.json|(model\.safetensors|pytorch_model\.bin)\.index\.json"
    r"|(tokenizer_config|special_tokens_map|added_tokens|emoji|normalizer)\.json|merges\.txt|bpe\.codes"
    r"|chat_template\.(jinja|json)|additional_chat_templates(/[^/]+\.jinja)?"
    r"|(preprocessor_|processor_|video_preprocessor_)config\.json"
)
_NUM_SHOWN = 3


def check_is_model(directory: Path) -> None:
    """Raises SaveError unless a directory may be deleted: it is empty, or a saved model and nothing else."""
    names, foreign = [], []
    is_adapter = (directory / ADAPTER_CONFIG).is_file()
    for entry in directory.rglob("*"):
        name = entry.relative_to(directory).as_posix()
        names.append(name)
        is_known = any(names.fullmatch(name) for names in (_WEIGHTS, _VOCABULARY, _OTHERS))
        if not is_known and not (is_adapter and name == "README.md"):
            foreign.append(name)
        if len(foreign) > _NUM_SHOWN:
            break
    if foreign:
        more = ", ..." if len(foreign) > _NUM_SHOWN else ""
        reason = f"it has what is not a model's: {', '.join(map(quoted, foreign[:_NUM_SHOWN]))}{more}"
    elif names and not (any(map(_WEIGHTS.fullmatch, names)) and (is_adapter or "config.json" in names)):
        reason = f"it is not a whole saved model: it has only {', '.join(map(quoted, sorted(names)[:_NUM_SHOWN]))}"
    else:
        return
    raise SaveError(f"{directory} is not replaced or deleted: {reason}; name another directory, or empty it yourself")


def has_vocabulary(directory: Path) -> bool:
    """Whether a directory has a file that a tokenizer is loaded from."""
    return any(_VOCABULARY.fullmatch(path.name) for path in directory.iterdir())
