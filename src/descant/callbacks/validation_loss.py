"""ValidationLossCallback: how probable the model finds what it should say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum
from statistics import fmean
from typing import Any, Unpack

from descant.arguments import check_text
from descant.callbacks.base import RunView
from descant.callbacks.examples import make_examples
from descant.callbacks.model_callback import ModelCallback, ModelOptions
from descant.data.datasets import ThreadSource
from descant.errors import DatasetError, RenderError, RequestError
from descant.metrics import MetricSpec
from descant.models.inference import InferenceModel, ItemFailure
from descant.models.off_loop import off_loop
from descant.schedule import Frequency
from descant.stats import standard_error
from descant.table import Table
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread

_UNIT = "nats per token"
_LARGEST_EXPONENT = 709.0  # of exp in float64


@dataclass(frozen=True, slots=True)
class ThreadLoss:
    """The weighted sum of negative log-likelihoods of one thread, in nats, and what it is averaged over."""

    nll_sum: float
    weight_sum: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Nats per trained token."""
        return self.nll_sum / self.weight_sum


class ValidationLossCallback(ModelCallback[list["ThreadLoss | ItemFailure"]]):
    """The negative log-likelihood of a validation set, without dropout.

    Metrics, with the default ``log_key`` (with another, ``validation/<log_key>`` is the loss and the others are under
    ``validation/<log_key>/``):
        ``validation/loss``: nats per trained token, over all trained tokens of all threads, each with its turn's
        weight. It does not depend on batch sizes, and is comparable to the training loss.
        ``validation/perplexity``: its exponential.
        ``validation/num_tokens``: how many tokens that is, end-of-turn tokens included.
        ``validation/loss_per_sample``: the mean of every thread's own loss per token.
        ``validation/loss_stderr``, ``validation/loss_per_sample_stderr``: standard errors of the two, prompts being the
        independent units (``stats.standard_error``); left out where there is one prompt.
        ``validation/loss_samples``: Table with ``prompt``, ``reference`` (the completion that is scored), ``loss``,
            ``num_tokens``, ``error``, ``example_id``.
        ``validation/loss_num_samples``: how many threads that is; ``validation/loss_num_failed``: how many could not be
        scored, if any. They are in no mean. (With another ``log_key``: ``num_samples``, ``num_failed``,
        ``stderr``, ``samples``.)

    Args:
        validation_set: threads with their completions, or what ``load_threads`` reads; weighted turns are scored.
        model: what is scored.
        frequency: the share of the run between two calls.
        log_key: names the loss, and the callback.
        limit: only the first so many threads.
        options: see ``ModelCallback``.

    Raises:
        ConfigurationError: an argument that cannot work.
        DatasetError: no threads, or a thread in which nothing is weighted.
    """

    def __init__(
        self,
        validation_set: ThreadSource,
        model: InferenceModel,
        frequency: Frequency = 0.1,
        log_key: str = "loss",
        *,
        limit: int | None = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        check_text("log_key", log_key)
        options.setdefault("name", log_key)
        super().__init__(model, frequency, "validation", **options)
        self.examples = make_examples(validation_set, "validation_set", limit)
        for position, example in enumerate(self.examples):
            if not any(example.thread.get_turn_weights()):
                raise DatasetError(
                    f"{example.thread.source or f'validation_set[{position}]'} has no weighted turn, so it has no "
                    "loss; end it in an assistant turn"
                )
        self.log_key, self.limit = log_key, limit
        self.metric_specs = (
            MetricSpec(log_key, _UNIT, better="lower", headline=True),
            MetricSpec(self._key("perplexity"), better="lower", headline=True, detail=True),
            MetricSpec(self._key("loss_per_sample"), _UNIT, better="lower", detail=True),
            MetricSpec(self._key("stderr"), _UNIT, detail=True),
            MetricSpec(self._key("loss_per_sample_stderr"), _UNIT, detail=True),
            MetricSpec(self._key("num_failed"), "threads", better="lower", headline=True, counts_failures=True),
            MetricSpec(self._key("num_samples"), "threads", detail=True),
            MetricSpec(self._key("num_tokens"), "tokens", detail=True),
            MetricSpec(self._key("samples")),
        )
        self._rendered: list[TokenizedThread | RenderError] = []

    def validation_threads(self) -> Sequence[StringThread]:
        """The threads that are scored."""
        return [example.thread for example in self.examples]

    async def on_start(self, run: RunView) -> None:
        """Renders the threads, once for the run."""
        self._rendered = await self._render(self.model)

    async def measure(self, model: InferenceModel) -> list[ThreadLoss | ItemFailure]:
        """The loss of each thread, or why it has none."""
        rendered = self._rendered or await self._render(model)
        tokenized = [thread for thread in rendered if isinstance(thread, TokenizedThread)]
        logprobs = await model.logprobs_per_token_many(tokenized, return_exceptions=True)
        return await off_loop(self._losses, rendered, logprobs)

    def _losses(
        self,
        rendered: Sequence[TokenizedThread | RenderError],
        scored_logprobs: Sequence[Sequence[float] | RequestError],
    ) -> list[ThreadLoss | ItemFailure]:
        scored = iter(scored_logprobs)
        losses: list[ThreadLoss | ItemFailure] = []
        for thread in rendered:
            if isinstance(thread, TokenizedThread):
                logprobs = next(scored)
                losses.append(logprobs if isinstance(logprobs, Exception) else _thread_loss(thread, logprobs))
            else:
                losses.append(thread)
        return losses

    async def _render(self, model: InferenceModel) -> list[TokenizedThread | RenderError]:
        return await model.tokenize_many(self.validation_threads(), return_exceptions=True)

    async def report(self, measurement: list[ThreadLoss | ItemFailure]) -> dict[str, Any]:
        """The averages."""
        return await off_loop(self._summarize, measurement)

    def _summarize(self, measurement: Sequence[ThreadLoss | ItemFailure]) -> dict[str, Any]:
        of_prompt = [(example.prompt_id, loss) for example, loss in zip(self.examples, measurement, strict=True)]
        prompts = [prompt_id for prompt_id, loss in of_prompt if isinstance(loss, ThreadLoss)]
        losses = [loss for loss in measurement if isinstance(loss, ThreadLoss)]
        metrics: dict[str, Any] = {
            self._key("num_tokens"): sum(loss.num_tokens for loss in losses),
            self._key("num_samples"): len(losses),
            self._key("samples"): self._sample_table(measurement),
        }
        if losses:
            loss = fsum(item.nll_sum for item in losses) / fsum(item.weight_sum for item in losses)
            metrics[self.log_key] = loss
            metrics[self._key("perplexity")] = float("inf") if loss > _LARGEST_EXPONENT else exp(loss)
            means, weights = [item.mean for item in losses], [item.weight_sum for item in losses]
            metrics[self._key("loss_per_sample")] = fmean(means)
            errors = {
                "stderr": standard_error(means, prompts, weights),
                "loss_per_sample_stderr": standard_error(means, prompts),
            }
            metrics |= {self._key(key): error for key, error in errors.items() if error is not None}
        if num_failed := len(measurement) - len(losses):
            metrics[self._key("num_failed")] = num_failed
            first = next(error for error in measurement if isinstance(error, Exception))
            self.warn(f"{num_failed} of {len(measurement)} threads could not be scored, first: {first}")
        return metrics

    def _sample_table(self, measurement: Sequence[ThreadLoss | ItemFailure]) -> Table:
        """One row per thread: which are hard, and which could not be scored."""
        table = Table(["prompt", "reference", "loss", "num_tokens", "error", "example_id"])
        for example, loss in zip(self.examples, measurement, strict=True):
            _, prompt = example.thread.without_completion().split_system()
            completion = None if example.thread.completion() is None else example.thread.turn_texts()[-1]
            error = None if isinstance(loss, ThreadLoss) else f"{type(loss).__name__}: {loss}"
            found = [loss.mean, loss.num_tokens] if isinstance(loss, ThreadLoss) else [None, None]
            table.add_row([prompt.as_text(), completion, *found, error, example.example_id])
        return table

    def _key(self, key: str) -> str:
        """``GraderEvalCallback`` counts under ``validation/`` too, so the loss says whose its counts are."""
        if self.log_key != "loss":
            return f"{self.log_key}/{key}"
        return f"loss_{key}" if key in ("num_samples", "num_failed", "stderr", "samples") else key


def _thread_loss(thread: TokenizedThread, logprobs: Sequence[float]) -> ThreadLoss:
    weights = [weight for weight in thread.token_weights() if weight > 0]
    nll_sum = -fsum(weight * logprob for weight, logprob in zip(weights, logprobs, strict=True))
    return ThreadLoss(nll_sum, fsum(weights), len(weights))
