"""CompositeLogger: several loggers as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from descant.errors import ConfigurationError
from descant.metrics import Metric
from descant.trackers.logger import Logger


class CompositeLogger(Logger):
    """Several loggers, each of which is given everything, also when another one fails.

    ``main_logger`` and ``second_logger`` are the recipe API's names of the first two.

    Given to a trainer, its trackers are fed separately, each at its own pace.

    Attributes:
        loggers: those that it was given.

    Raises:
        ConfigurationError: no logger was given, or something that cannot be called.
    """

    def __init__(
        self, *loggers: Logger, main_logger: Logger | None = None, second_logger: Logger | None = None
    ) -> None:
        given = (main_logger, *loggers, second_logger)
        self.loggers: tuple[Logger, ...] = tuple(logger for logger in given if logger is not None)
        if not self.loggers:
            raise ConfigurationError("a CompositeLogger needs a logger")
        if wrong := [logger for logger in self.loggers if not callable(logger)]:
            raise ConfigurationError(
                f"CompositeLogger: {wrong[0]!r} is a {type(wrong[0]).__name__}, not a logger; give a list as *loggers"
            )

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Log with each.

        Raises:
            ExceptionGroup: what some of them raised, after all of them were called.
        """
        self._each(lambda logger: logger(metrics))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the settings with each; raises as a call does."""
        self._each(lambda logger: logger.log_config(config))

    @property
    def training_monitoring_link(self) -> str | None:
        """The first link that one of them has."""
        links = (logger.training_monitoring_link for logger in self.loggers)
        return next((link for link in links if link is not None), None)

    def close(self) -> None:
        """Close each; raises as a call does."""
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        errors = []
        for logger in self.loggers:
            try:
                call(logger)
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(self.loggers)} loggers failed", errors)
