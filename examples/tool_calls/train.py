"""A model learns to call tools, while two graders check its calls: is it the right tool, with the right arguments?

    python examples/tool_calls/train.py --model path/or/hub-id

The model's chat template has to know tools; Qwen3's does, and most of today. What a call looks like in text is the
template's to decide, so the references are what the model would write, and both are read in the same way: change
``read_call`` if your model does not write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.
"""

import argparse
import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any

from descant import (
    SFT,
    BaseGrader,
    CombinedGrader,
    Grade,
    GraderEvalCallback,
    ModelBuilder,
    StringThread,
    Tool,
    ToolCall,
    ValidationLossCallback,
)
from descant.errors import GradingError

ROOMS = ("kitchen", "bedroom", "bathroom", "hall", "study")
ROOM = {"type": "string", "enum": list(ROOMS)}
TOOLS = (
    Tool("dim_light", "Sets a lamp.", {"type": "object", "properties": {"room": ROOM, "percent": {"type": "integer"}}}),
    Tool("heat", "Sets a heater.", {"type": "object", "properties": {"room": ROOM, "celsius": {"type": "integer"}}}),
)


def conversations() -> list[StringThread]:
    """Every wish for a room: the visitor's words, the call, the tool's answer, and what is said then."""
    threads = []
    for room in ROOMS:
        home = StringThread(tools=TOOLS)
        for percent in range(10, 100, 10):
            call = ToolCall("dim_light", {"room": room, "percent": percent})
            asked = home.user(f"Light in the {room} to {percent} percent, please.").assistant("", [call])
            threads.append(asked.tool("ok").assistant(f"The light in the {room} is at {percent} percent."))
        for celsius in range(15, 25):
            call = ToolCall("heat", {"room": room, "celsius": celsius})
            asked = home.user(f"Make it {celsius} degrees in the {room}.").assistant("", [call])
            threads.append(asked.tool("ok").assistant(f"The {room} will have {celsius} degrees."))
    random.Random(0).shuffle(threads)
    return threads


def read_call(text: str) -> dict[str, Any] | None:
    """The call in what a model has written, as its name and arguments; None if there is none that can be read."""
    found = re.search(r"<tool_call>(.*?)</tool_call>", text, flags=re.DOTALL)
    try:
        call = json.loads(found[1]) if found else None
    except ValueError:
        return None
    return call if isinstance(call, dict) and {"name", "arguments"} <= call.keys() else None


def calls(thread: StringThread) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The call that was wanted, and the one that was made."""
    reference = thread.metadata["reference"]
    wanted = read_call(reference)
    if wanted is None:
        raise GradingError(
            f"read_call finds no call in the reference {reference!r}; write it for your model's template"
        )
    return wanted, read_call(thread.last_content())


def right_tool(thread: StringThread) -> Grade:
    wanted, made = calls(thread)
    name = made and made["name"]
    return Grade(float(name == wanted["name"]), "tool", f"called {name or 'nothing'}, wanted {wanted['name']}")


def right_arguments(thread: StringThread) -> Grade:
    wanted, made = calls(thread)
    arguments = json.dumps(made and made["arguments"])
    return Grade(float(made == wanted), "arguments", f"got {arguments}, wanted {json.dumps(wanted['arguments'])}")


async def main(arguments: argparse.Namespace) -> None:
    threads = conversations()
    validation, whole = [thread.first_turns(2) for thread in threads[:20]], threads[20:]
    # Every turn is trained as the last one of a thread, as it will be written: many templates, Qwen3's for one, show
    # earlier turns in another form.
    train = [each for t in whole for each in (t.first_turns(2), t.with_weight_last_assistant_turn())]
    model = await ModelBuilder(arguments.model).spawn_train("policy", max_batch_size=8192)
    graders = [BaseGrader.from_function("tool", right_tool), BaseGrader.from_function("arguments", right_arguments)]
    result = await SFT(
        dataset=train,
        model=model,
        lr=arguments.lr,
        epochs=arguments.epochs,
        samples_per_batch=8,
        run_dir=arguments.run_dir,
        callbacks=[
            GraderEvalCallback(validation, model, CombinedGrader("call", graders), frequency=0.25, max_gen_len=64),
            ValidationLossCallback(validation, model, frequency=0.25),
        ],
    ).run()
    for grader in ("tool", "arguments"):
        print(f"the right {grader} in {result.metrics[f'validation/rewards/{grader}/score/mean']:.0%} of the calls")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory or hub id of a model that calls tools")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--run-dir", type=Path, help="by default runs/sft-<date>-<time>")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(parse_arguments()))
