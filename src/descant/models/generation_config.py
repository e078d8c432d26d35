"""What of a model's ``generation_config`` is applied, and what is not."""

from __future__ import annotations

import warnings
from typing import Any

_CHANGES_ANSWERS = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "token_healing": False,
    "watermarking_config": None,
}
"""Settings with which the most probable answer is another one, each with the value that changes nothing.

Those that only say how to sample (``do_sample``, ``temperature``, ``top_p``, ``top_k``, ``min_p``, ...) and how long
(``max_length``, ``max_new_tokens``) stand in most files, and callbacks and views have their own.
"""


def stop_ids_of(model: Any) -> frozenset[int]:
    """The tokens that end generation by the model's own configuration."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(eos if isinstance(eos, list | tuple) else [] if eos is None else [eos])


def warn_of_settings_not_applied(model: Any, name: str) -> None:
    """One warning that names what of the ``generation_config`` would change answers and is not applied."""
    found = {key: getattr(model.generation_config, key, None) for key in _CHANGES_ANSWERS}
    changed = {key: value for key, value in found.items() if value not in (None, [], _CHANGES_ANSWERS[key])}
    if changed:
        settings = ", ".join(f"{key}={value!r}" for key, value in changed.items())
        warnings.warn(
            f"{name}: its generation_config says {settings}, which is not applied: answers are sampled from the "
            "model's own distribution, and may differ from those of Transformers' generate",
            stacklevel=2,
        )
