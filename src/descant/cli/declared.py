"""The metrics that a run declares: their direction, unit, and which ones are looked at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from descant.metrics import MetricSpec


def declared_metrics(config: Mapping[str, Any]) -> list[MetricSpec]:
    """What the trainer and the callbacks of a run declare, from its config: single keys, then families."""
    specs = [MetricSpec(**declared) for declared in config.get("metrics") or ()]
    return sorted(specs, key=lambda spec: "*" in spec.key)
