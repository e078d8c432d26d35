"""JSONSchemaGrader: is the completion JSON that a schema allows?"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from descant.graders.base import SHOWN_LENGTH
from descant.graders.completion_grader import CompletionGrader, cut
from descant.graders.daemon_pool import GRADER_THREADS
from descant.graders.json_schema_validator import JSONSchemaValidator
from descant.threads.thread import StringThread

_FENCED = re.compile(r"(`{3,}+)[^\n`]*+\n(.*)\1", re.DOTALL)


class JSONSchemaGrader(CompletionGrader):
    """Grade 1 if the completion is JSON and valid under the schema, else 0.

    The completion is JSON and nothing else, surrounding white space aside; all of it may stand in one ``` fence. NaN
    and Infinity are not JSON. What cannot be read or checked, since it is nested too deeply or has a number that is too
    large, is graded 0. The draft of the schema is that of its ``$schema``, or else 2020-12. ``format`` is a remark and
    not checked, as the standard has it, and nothing is fetched: ``$ref`` leads to ``$defs`` of the same schema.

    Args:
        schema: a JSON schema, as a dict.
        grader_key: the grader's name.

    Raises:
        ConfigurationError: not a JSON schema, or one that cannot work: an unknown draft, a reference that leads nowhere
            or in a circle, ``unevaluatedProperties`` together with ``patternProperties``, a ``$schema`` that is not at
            the top, a pattern that the ``regex`` library does not read.
        GradingError (when grading): a pattern took more than about a second or the schema more than about ten, or the
            thread does not end in an assistant turn.
    """

    def __init__(self, schema: dict[str, Any], grader_key: str = "json_schema") -> None:
        super().__init__(grader_key)
        self.schema = schema
        self._validator = JSONSchemaValidator(schema)

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str]:
        """Whether the schema allows it; the reasoning is the first violation with its path."""
        reason = await GRADER_THREADS.run(self._violation, completion)
        return reason is None, reason or "valid"

    def _violation(self, completion: str) -> str | None:
        try:
            instance = json.loads(_without_fence(completion.strip()), parse_constant=_refuse_constant)
        except RecursionError:
            return "not JSON that can be read: nested too deeply"
        except ValueError as error:
            return f"not JSON: {error}"
        try:
            violation = self._validator.first_violation(instance)
        except RecursionError:  # not the schema's fault, which leads in no circle
            return "JSON that cannot be checked: nested too deeply"
        except ArithmeticError as error:
            return f"JSON that cannot be checked: a number is too large ({error})"
        if violation is None:
            return None
        message = violation.message
        if len(message) > SHOWN_LENGTH:
            message = f"{message[: SHOWN_LENGTH // 2]} ... {message[-SHOWN_LENGTH // 2 :]}"  # the reason is at its end
        return f"{cut(violation.json_path)}: {message}"


def _without_fence(text: str) -> str:
    fenced = _FENCED.fullmatch(text)
    return fenced[2] if fenced else text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
