"""ForwardPass: calls of a module's forward for any signature and configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

_CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""What models call the argument, and the output, for what they have read so far; ``cache`` from Transformers 5.24."""
_ASKED_FOR = {
    "return_dict": True,
    "output_router_logits": False,  # set in training, and not computable in decoding
    "output_hidden_states": False,
    "output_attentions": False,
}


class ForwardPass:
    """The forward of a causal language model, or of the module inside of it, called with token ids.

    Arguments that its signature does not name are left out.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        parameters = inspect.signature(module.forward).parameters.values()
        self._names = {parameter.name for parameter in parameters}
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        configs = (module.config, module.config.get_text_config())
        self._configs = list({id(config): config for config in configs}.values())
        self._is_hidden = takes_any and "input_ids" not in self._names  # behind a wrapper's (*args, **kwargs)
        names = fields(BaseModelOutputWithPast) if self._is_hidden else parameters
        self.cache_name = next((name for name in _CACHE_NAMES if name in {each.name for each in names}), "")
        """Its argument for what it has read so far; empty if it has none."""

    def takes(self, name: str) -> bool:
        """Whether it has an argument of that name."""
        return self._is_hidden or name in self._names

    def __call__(self, ids_BT: Tensor, *, use_cache: bool = False, **inputs: Any) -> Any:
        """Its output for these tokens, with those of ``inputs`` that it takes."""
        inputs["use_cache"] = use_cache
        given = {name: value for name, value in inputs.items() if self.takes(name)}
        with self._plain_outputs():
            return self.module(input_ids=ids_BT, **given)

    @staticmethod
    def cache_in(output: Any) -> Any:
        """What it has read so far, from its output; None if that is not there."""
        found = vars(output)  # no attributes: those for older names warn
        return next((cache for name in _CACHE_NAMES if (cache := found.get(name)) is not None), None)

    @contextmanager
    def _plain_outputs(self) -> Iterator[None]:
        """Without the flags of a configuration that add outputs or change their type.

        ``generate`` of Transformers overrules them by arguments, which not every model takes or hands on.
        """
        changed = [
            (config, name, found)
            for config in self._configs
            for name, value in _ASKED_FOR.items()
            if (found := getattr(config, name, value)) != value
        ]
        for config, name, _ in changed:
            setattr(config, name, _ASKED_FOR[name])
        try:
            yield
        finally:
            for config, name, found in changed:
                setattr(config, name, found)
