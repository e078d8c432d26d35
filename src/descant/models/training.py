"""TrainingModel: an InferenceModel that can also be trained and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike

from descant.arguments import as_model_path
from descant.engine import jobs
from descant.errors import ConfigurationError, ObserverError, RequestError
from descant.models.inference import InferenceModel, Settled, render_each, settled
from descant.models.requester import Requester, current_requester
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread


class TrainingModel(InferenceModel):
    """A handle on a model that can be trained: ``train_...`` calls accumulate a gradient, ``optim_step`` applies it.

    It generates and scores on the live weights. Callbacks may have it do so, and never train.

    Made by ``ModelBuilder.spawn_train``.
    """

    async def train_language_modelling(self, thread: StringThread, *, seed: int = 0) -> None:
        """Accumulate the gradient of the negative log-likelihood of the thread's weighted tokens.

        Raises:
            RenderError: the chat template refuses the thread.
            RequestError: it does not fit the batch budget or the model, or no token carries weight.
            ObserverError: called from a callback.
        """
        key = (current_requester(), "train_language_modelling", seed)
        train = partial(self.train_language_modelling_many, seed=seed, return_exceptions=True)
        await self._collector.call(key, thread, train)

    async def train_language_modelling_many(
        self, threads: Sequence[StringThread], *, seed: int = 0, return_exceptions: bool = False
    ) -> Settled[None]:
        """``train_language_modelling`` for a list of threads: ``accumulate_many`` with that loss."""
        return await self.accumulate_many(threads, "language_modelling", seed=seed, return_exceptions=return_exceptions)

    async def accumulate_many(
        self,
        threads: Sequence[StringThread | TokenizedThread],
        loss: jobs.LossName,
        *,
        columns: Sequence[Mapping[str, jobs.Column]] | None = None,
        seed: int = 0,
        return_exceptions: bool = False,
    ) -> Settled[None]:
        """Accumulate the gradient of a loss on the weighted tokens of threads, in micro-batches of ``max_batch_size``.

        How the list is cut does not change the step: ``optim_step`` divides the sum of all calls before it by the
        denominator of the loss ("language_modelling": the trained tokens, weighted). Threads that fail are left out.

        Args:
            threads: as text, or with the exact tokens.
            loss: its name; all of a step has one.
            columns: of each thread, further inputs of the loss; by name a number, or one for every token.
            seed: of the run: dropout draws from (seed, step, micro-batch) and from nothing else.
            return_exceptions: see ``InferenceModel``.

        Raises:
            RenderError, RequestError, ObserverError: as for ``train_language_modelling``.
        """
        self._check_may_train(f"train_{loss}")

        def render(item: tuple[StringThread | TokenizedThread, Mapping[str, jobs.Column]]) -> jobs.WeightedSequence:
            thread, of_thread = item
            rendered = thread if isinstance(thread, TokenizedThread) else self._renderer.render(thread)
            return jobs.WeightedSequence(rendered.token_ids, tuple(rendered.token_weights()), of_thread)

        async def accumulate(sequences: Sequence[jobs.WeightedSequence]) -> list[RequestError | None]:
            return await self._worker.run(jobs.Accumulate(tuple(sequences), loss, seed))

        items = list(zip(threads, columns or [{}] * len(threads), strict=True))
        return settled(await render_each(items, render, accumulate), return_exceptions)

    async def optim_step(
        self, lr: float, wd: float = 0.0, max_grad_norm: float = 1.0, skip_nan_gradients: bool = False
    ) -> dict[str, float]:
        """Apply the accumulated gradient with AdamW and forget it.

        Args:
            lr: the learning rate of this update.
            wd: decoupled weight decay, on matrices and embeddings.
            max_grad_norm: the global norm that the gradient is clipped to.
            skip_nan_gradients: leave out an update whose gradient is not finite instead of raising.

        Returns:
            ``loss`` (of "language_modelling": nats per trained token, weighted), ``grad_norm`` (before clipping),
            ``num_tokens`` (trained), ``num_samples`` and ``skipped_update`` (1 if the gradient was not finite).

        Raises:
            ConfigurationError: a negative learning rate or weight decay, or a maximal norm that is not positive.
            NonFiniteError: the gradient is not finite; the weights are unchanged.
            ObserverError: called from a callback.
        """
        self._check_may_train("optim_step")
        if not lr >= 0 or not wd >= 0 or not max_grad_norm > 0:
            raise ConfigurationError(
                f"optim_step needs lr >= 0, wd >= 0 and max_grad_norm > 0, got lr={lr}, wd={wd}, "
                f"max_grad_norm={max_grad_norm}"
            )
        return await self._worker.run(jobs.OptimStep(lr, wd, max_grad_norm, skip_nan_gradients))

    async def discard_gradient(self) -> None:
        """Forget the gradient since the last ``optim_step``, as an interrupted trainer may have left it."""
        self._check_may_train("discard_gradient")
        await self._worker.run(jobs.DiscardGradient())

    async def load(self, path: str | PathLike[str]) -> None:
        """Replace the live weights by those of a directory or hub id, and begin with a fresh optimizer.

        Snapshots and the reference stay as they are.

        Raises:
            ModelLoadError: there is no whole model at ``path``, or its weights are quantized.
            WeightsError: names, shapes, or settings that decide what weights compute (such as the number of heads) are
                not the model's, with what differs; nothing is changed.
            ObserverError: called from a callback.
        """
        self._check_may_train("load")
        await self._worker.run(jobs.Load(as_model_path(path)))

    async def reference(self) -> InferenceModel:
        """A handle on the weights that the model was spawned with; they are kept as long as the model.

        The first call copies them, so it has to come before training.

        Raises:
            WeightsError: the weights have changed already.
        """
        await self._worker.run(jobs.KeepReference())
        return self._handle(jobs.REFERENCE)

    @contextmanager
    def trained_by(self, trainer: Requester) -> Iterator[None]:
        """Until this ends, only ``trainer`` may train the model: not a callback, nor threads and tasks that it starts.

        Raises:
            ObserverError: another trainer trains it.
        """
        self._check_may_train("training")
        self._worker.trainer = trainer
        try:
            yield
        finally:
            self._worker.trainer = None

    def _check_may_train(self, method: str) -> None:
        requester, trainer = current_requester(), self._worker.trainer
        if requester is not None:
            requester.check_may_train(method)
        if trainer is not None and requester is not trainer:
            raise ObserverError(
                f"{method}: {self.name!r} is being trained by {trainer.name}, and by no other until it ends"
            )
