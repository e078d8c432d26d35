"""Contamination: prompts of validation sets that are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from descant.data.normal_form import normal_turns, prompts_of
from descant.errors import ConfigurationError
from descant.text import quoted
from descant.threads.thread import StringThread

_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class ContaminationExample:
    """One prompt that is in both a validation set and the training set.

    Attributes:
        validation: the source of the validation thread.
        training: the source of the training thread, the first if there are several.
        text: the last turn of the prompt.
        is_exact: False if they differ in case, space or system turns.
    """

    validation: str
    training: str
    text: str
    is_exact: bool


@dataclass(frozen=True)
class Contamination:
    """The prompts that a validation set has in common with the training set.

    Attributes:
        name: of the validation set.
        num_prompts: threads that have a prompt; one with several prompts counts once.
        num_exact: how many of them have a prompt that is in the training set as it is.
        num_normalised: how many more have one that is there except for case, space and system turns.
        examples: the first few.
    """

    name: str
    num_prompts: int
    num_exact: int
    num_normalised: int
    examples: tuple[ContaminationExample, ...]

    def describe(self) -> str:
        """One line for a person: how many prompts, and the examples."""
        shown = ", ".join(
            f"{example.validation} {'=' if example.is_exact else '≈'} {example.training} {quoted(example.text)}"
            for example in self.examples
        )
        return (
            f"{self.name}: {self.num_exact + self.num_normalised} of {self.num_prompts} prompts also stand in the "
            f"training set ({self.num_exact} exactly, {self.num_normalised} but for case, space and system "
            f"turns); first: {shown}"
        )


def find_contamination(
    training_set: Iterable[StringThread], validation_sets: Mapping[str, Iterable[StringThread]]
) -> list[Contamination]:
    """The validation sets with prompts that are also in the training set.

    The prompts of a thread are the turns before each assistant turn that carries weight; of a validation thread, also
    ``thread.messages()``, with which it may be prompted. Prompts are compared as they are, and normalised: in Unicode's
    compatibility form (NFKC), case folded, each white space as one space, without ids of tool calls, and without system
    turns unless there are no others before the first answer.

    What is found is a lower bound: a prompt in other words, or with other punctuation, is another prompt.

    Time is proportional to the training set, memory to the validation sets.

    Raises:
        ConfigurationError: ``validation_sets`` is not a mapping of names, or a set has something that is no thread.
    """
    if not isinstance(validation_sets, Mapping):
        raise ConfigurationError(
            f"validation_sets is a {type(validation_sets).__name__}; it must be a dict of sets by their names, as "
            '{"validation": threads}'
        )
    for name, threads in (("training_set", training_set), *validation_sets.items()):
        if not isinstance(threads, Iterable):
            raise ConfigurationError(f"{name} is a {type(threads).__name__}; it must be a list of threads")
    index = _Index(validation_sets)
    for position, thread in enumerate(training_set):
        _check_thread(thread, "training_set", position)
        index.look_up(thread, position)
    return [found for name in validation_sets if (found := index.result(name)).examples]


def _check_thread(thread: object, name: str, position: int) -> None:
    if not isinstance(thread, StringThread):
        advice = "; pass the chosen threads of pairs" if isinstance(thread, tuple) else "; read rows with load_threads"
        raise ConfigurationError(f"{name}[{position}] is a {type(thread).__name__}, not a StringThread{advice}")


@dataclass
class _Held:
    """A validation thread, and the sources of training threads with one of its prompts, each with its last turn."""

    source: str
    exactly: list[tuple[str, str]] = field(default_factory=list)
    nearly: list[tuple[str, str]] = field(default_factory=list)


class _Index:
    """The prompts of validation threads by the hash of their normal form."""

    def __init__(self, validation_sets: Mapping[str, Iterable[StringThread]]) -> None:
        self.by_set: dict[str, list[_Held]] = {}
        self.by_hash: dict[int, list[tuple[_Held, StringThread, int]]] = {}
        for name, threads in validation_sets.items():
            self.by_set[name] = []
            for position, thread in enumerate(threads):
                _check_thread(thread, f"validation_sets[{name!r}]", position)
                held = _Held(thread.source or f"{name}[{position}]")
                prompts = list(prompts_of(thread, len(thread.messages())))
                self.by_set[name] += [held] * bool(prompts)
                for num_turns, hashed in prompts:
                    self.by_hash.setdefault(hashed, []).append((held, thread, num_turns))

    def look_up(self, thread: StringThread, position: int) -> None:
        """Records the validation threads that have a prompt which this training thread answers."""
        for num_turns, hashed in prompts_of(thread):
            if hashed not in self.by_hash:
                continue
            trained = thread.first_turns(num_turns)
            for held, validation, num_held in self.by_hash[hashed]:
                prompt = validation.first_turns(num_held)
                if not held.exactly and _turns(trained) == _turns(prompt):
                    same = held.exactly
                elif not (held.exactly or held.nearly) and normal_turns(trained) == normal_turns(prompt):
                    same = held.nearly
                else:
                    continue
                same.append((thread.source or f"training_set[{position}]", prompt.last_content()))

    def result(self, name: str) -> Contamination:
        threads = self.by_set[name]
        exact = [held for held in threads if held.exactly]
        nearly = [held for held in threads if held.nearly and not held.exactly]
        examples = tuple(
            ContaminationExample(held.source, *(held.exactly or held.nearly)[0], bool(held.exactly))
            for held in (*exact, *nearly)[:_NUM_EXAMPLES]
        )
        return Contamination(name, len(threads), len(exact), len(nearly), examples)


def _turns(thread: StringThread) -> object:
    return thread.get_turns(), thread.get_tool_calls()
