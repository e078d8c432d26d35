"""Hundreds of owners on one engine at once: mixed work, cancellations, failures, threads, and training beside it."""

import asyncio
import random

import torch
from support import addition_threads, ragged_threads, training_model, weights_of

from descant import StringThread
from descant.errors import ObserverError, RequestError
from descant.models.requester import Requester, requester_scope

NUM_OWNERS = 240
PROMPTS = [thread.without_completion() for thread in addition_threads(40)]
THREADS = ragged_threads(20)
TRAINED = ragged_threads(12)
TOO_LONG = StringThread().user("x" * 400)
SECONDS = 240  # far more than it takes; a deadlock shows as the list of those who wait


class Boom(Exception):
    pass


async def single_calls(model, numbers):
    """Single calls that are collected."""
    view = model.max_gen_len(numbers.randint(1, 6)).temperature(numbers.choice([0.0, 1.0]))
    return [t.last_content() for t in await asyncio.gather(*map(view.generate, numbers.sample(PROMPTS, 5)))]


async def scores_and_samples(model, numbers):
    """A list call and single calls at the same time."""
    view = model.max_gen_len(4)
    scores, *threads = await asyncio.gather(
        model.logprobs_many(numbers.sample(THREADS, 6)), *map(view.generate, numbers.sample(PROMPTS, 3))
    )
    return scores, [thread.last_content() for thread in threads]


async def repeated(model, numbers):
    """The same prompt again and again: every completion has its own seed."""
    prompt = numbers.choice(PROMPTS)
    return [(await model.max_gen_len(5).generate(prompt)).last_content() for _ in range(3)]


async def partly_failing(model, numbers):
    """Requests that fail beside others that do not."""
    threads = [TOO_LONG, *numbers.sample(PROMPTS, 2)]
    results = await asyncio.gather(*map(model.max_gen_len(3).generate, threads), return_exceptions=True)
    return [type(r).__name__ if isinstance(r, RequestError) else r.last_content() for r in results]


async def in_a_thread(model, numbers):
    """A grader in a thread with an event loop of its own."""
    prompts = numbers.sample(PROMPTS, 2)
    threads = await asyncio.to_thread(lambda: asyncio.run(model.max_gen_len(3).generate_many(prompts)))
    return [thread.last_content() for thread in threads]


async def raising(model, numbers):
    """Fails in the middle of requests that nobody awaits any more."""
    tasks = [asyncio.ensure_future(model.max_gen_len(50).generate(prompt)) for prompt in numbers.sample(PROMPTS, 3)]
    await model.logprobs(numbers.choice(THREADS))
    for task in tasks:
        task.cancel()
    raise Boom(str(numbers.random()))


async def snapshot_of_snapshot(model, numbers):
    """Handles come and go."""
    handle = await model.snapshot()
    return await handle.logprobs_many(numbers.sample(THREADS, 3))


async def trains(model, numbers):
    """Is refused, whatever it does."""
    try:
        await numbers.choice([model.live.discard_gradient, lambda: model.live.train_language_modelling(THREADS[0])])()
    except ObserverError as error:
        return type(error).__name__
    raise AssertionError("an observer trained the model")


KINDS = [
    single_calls, scores_and_samples, repeated, partly_failing, in_a_thread, raising, snapshot_of_snapshot, trains,
]  # fmt: skip


async def as_owner(number, model):
    """One owner's work: a pure function of its number and of the weights."""
    numbers = random.Random(number)
    with requester_scope(Requester(f"owner-{number}", number, observer=True)):
        try:
            return await KINDS[number % len(KINDS)](model, numbers)
        except Boom as error:
            return f"Boom {error}"


async def train(model, num_steps):
    for _ in range(num_steps):
        await model.train_language_modelling_many(TRAINED, seed=5)
        await model.optim_step(lr=1e-3)


async def all_at_once(model, live, numbers):
    """Every owner at the same time, half of them in chains in which one waits for another; a fifth is cancelled."""
    done = [asyncio.Event() for _ in range(NUM_OWNERS)]
    victims = dict.fromkeys(numbers.sample(range(NUM_OWNERS), NUM_OWNERS // 5))
    tasks = {}

    async def owner(number):
        try:
            if number % 2 and number > 10:
                await done[number - 10].wait()
            return await as_owner(number, model)
        finally:
            done[number].set()
            if victim := next((v for v in victims if not tasks[v].done() and v != number), None):
                victims.pop(victim)
                tasks[victim].cancel()

    order = list(range(NUM_OWNERS))
    numbers.shuffle(order)
    for number in order:
        tasks[number] = asyncio.create_task(owner(number), name=f"{KINDS[number % len(KINDS)].__name__}-{number}")
    training = asyncio.create_task(train(live, 20), name="training")
    _, waiting = await asyncio.wait([*tasks.values(), training], timeout=SECONDS)
    assert not waiting, f"deadlock: {sorted(task.get_name() for task in waiting)[:20]} still wait"
    training.result()
    return {number: task.result() for number, task in tasks.items() if not task.cancelled()}


async def test_owners_get_their_own_results_whoever_else_is_busy(gpt2_dir):
    async with training_model(gpt2_dir) as model:
        snapshot = await model.snapshot()
        snapshot.live = model
        alone = {number: await as_owner(number, snapshot) for number in range(NUM_OWNERS)}
        await train(model, 20)
        trained_alone = weights_of(model)
    for seed in (1, 2):
        async with training_model(gpt2_dir) as model:
            snapshot = await model.snapshot()
            snapshot.live = model
            together = await all_at_once(snapshot, model, random.Random(seed))
            # A job whose owner was cancelled may be on the weights of the snapshot still: after this it has ended.
            assert await model.logprobs_many(THREADS) != await snapshot.logprobs_many(THREADS)
            trained_beside = weights_of(model)
            await snapshot.dealloc()
            assert not model._worker._loop._engine.weights._copies, "a handle was lost"
        assert len(together) < NUM_OWNERS, "nobody was cancelled"
        assert len(together) > NUM_OWNERS // 2
        different = [KINDS[n % len(KINDS)].__name__ for n, result in together.items() if result != alone[n]]
        assert not different, f"seed {seed}"
        for name, tensor in trained_alone.items():
            assert torch.equal(trained_beside[name], tensor), f"seed {seed}: {name}"
