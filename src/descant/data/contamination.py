"""Contamination: prompts of validation sets that are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from descant.data.normal_form import normal_turns, prompts_of
from descant.data.pairs import same_turns
from descant.errors import ConfigurationError
from descant.text import quoted
from descant.threads.thread import StringThread

_NUM_EXAMPLES = 3
_Prompt = tuple[str, int, StringThread, int]  # set, number of the thread in it, thread, number of turns


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
    turns unless there are no others before the first answer. What is found is a lower bound: a prompt in other words,
    or with other punctuation, is another prompt. Time is proportional to the training set, memory to the validation
    sets.

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
    index, num_prompts = _index(validation_sets)
    found: dict[str, dict[int, ContaminationExample]] = {name: {} for name in validation_sets}
    for position, thread in enumerate(training_set):
        _check_thread(thread, "training_set", position)
        for num_turns, hashed in prompts_of(thread):
            for name, number, validation, num_held in index.get(hashed, ()):
                known = found[name].get(number)
                if known is not None and known.is_exact:
                    continue
                trained, prompt = thread.first_turns(num_turns), validation.first_turns(num_held)
                is_exact = same_turns(trained, prompt)
                if is_exact or (known is None and normal_turns(trained) == normal_turns(prompt)):
                    sources = (validation.source or f"{name}[{number}]", thread.source or f"training_set[{position}]")
                    found[name][number] = ContaminationExample(*sources, prompt.last_content(), is_exact)
    return [_summary(name, num_prompts[name], examples) for name, examples in found.items() if examples]


def _check_thread(thread: object, name: str, position: int) -> None:
    if not isinstance(thread, StringThread):
        advice = "; pass the chosen threads of pairs" if isinstance(thread, tuple) else "; read rows with load_threads"
        raise ConfigurationError(f"{name}[{position}] is a {type(thread).__name__}, not a StringThread{advice}")


def _index(validation_sets: Mapping[str, Iterable[StringThread]]) -> tuple[dict[int, list[_Prompt]], Counter[str]]:
    """The prompts of all sets by the hash of their normal form, and how many threads of each set have one."""
    index: dict[int, list[_Prompt]] = {}
    num_prompts: Counter[str] = Counter()
    for name, threads in validation_sets.items():
        for number, thread in enumerate(threads):
            _check_thread(thread, f"validation_sets[{name!r}]", number)
            prompts = list(prompts_of(thread, len(thread.messages())))
            num_prompts[name] += bool(prompts)
            for num_turns, hashed in prompts:
                index.setdefault(hashed, []).append((name, number, thread, num_turns))
    return index, num_prompts


def _summary(name: str, num_prompts: int, examples: dict[int, ContaminationExample]) -> Contamination:
    in_order = sorted(examples.items(), key=lambda item: (not item[1].is_exact, item[0]))
    num_exact = sum(example.is_exact for example in examples.values())
    shown = tuple(example for _, example in in_order[:_NUM_EXAMPLES])
    return Contamination(name, num_prompts, num_exact, len(examples) - num_exact, shown)
