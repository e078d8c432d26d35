"""NumericGrader: is the last number of the completion the right one?"""

from __future__ import annotations

import re
from decimal import Context, Decimal, localcontext
from typing import NamedTuple

from descant.arguments import check_finite_number, is_finite_number
from descant.graders.base import SHOWN_LENGTH
from descant.graders.completion_grader import ReferenceGrader
from descant.text import cut, quoted
from descant.threads.thread import StringThread

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++)"
_POWER = r"[-+\u2212]?\d++"
_NUMBER = re.compile(
    rf"""
    (?: (?<![A-Za-z_\d.)\]}}]) (?P<sign>[-+\u2212]) )?  # after a letter, digit or bracket it is a hyphen or an operator
    [$€£¥]?
    (?<![A-Za-z_\d]) (?<!\d\.)                          # not the 2 of H2O, nor the 7 of 3.11.7
    (?: (?: (?P<whole>\d++)[ ] )? (?<!\d/)              # 01/02/2024 does not end in a fraction
        (?P<numerator>{_PLAIN}) [ ]?/[ ]? (?P<denominator>{_PLAIN})
      | (?P<decimal>{_PLAIN})
        (?: [eE](?P<exponent>{_POWER})
          | [ ]?(?:×|x|\*|\\times)[ ]?10[ ]?(?:\^|\*\*)[ ]?\{{?(?P<power>{_POWER})\}}? )?
    )
    """,
    re.VERBOSE,
)
_EXACT = Context(prec=60, traps=[])  # decimal, since 0.4 is 0.1 from 0.3; without traps, since overflow is not a match


class Number(NamedTuple):
    """A number in a text: as it is written, and its value, which is not finite for 1/0."""

    text: str
    value: Decimal


class NumericGrader(ReferenceGrader):
    """Grade 1 if the last number in the completion is the last number in the reference, within a tolerance, else 0.

    Numbers may have a sign, a decimal point, commas between thousands (``1,234`` is one number), an exponent (``2e-3``,
    ``2×10^-3``) and a currency sign, and may be fractions (``3/4``, ``1 3/4``). A percent sign is not part of the
    number: ``50%`` is 50. Digits after a letter (``H2O``) are no number. LaTeX and decimal commas are not understood.

    The reference is ``metadata[reference_key]``, a number or a text, such as a solution that ends in the result. The
    numbers agree if they differ by no more than the larger of ``absolute_tolerance`` and ``relative_tolerance`` times
    the reference.

    Raises:
        ConfigurationError: a tolerance that is negative or not finite.
        GradingError (when grading): the reference is missing or has no finite number, or the thread does not end in an
            assistant turn.
    """

    def __init__(
        self,
        grader_key: str = "numeric",
        reference_key: str = "reference",
        absolute_tolerance: float = 1e-6,
        relative_tolerance: float = 0.0,
    ) -> None:
        super().__init__(grader_key, reference_key)
        check_finite_number("absolute_tolerance", absolute_tolerance, least=0)
        check_finite_number("relative_tolerance", relative_tolerance, least=0)
        self.absolute_tolerance = absolute_tolerance
        self.relative_tolerance = relative_tolerance

    async def check(self, completion: str, sample: StringThread) -> tuple[bool, str]:
        """Whether the numbers agree; the reasoning shows both as they are written."""
        reference = self._number_of(sample)
        found = last_number(completion)
        if found is None:
            return False, f"no number in {quoted(completion, SHOWN_LENGTH)}, expected {cut(reference.text)}"
        with localcontext(_EXACT):
            relative = Decimal(repr(float(self.relative_tolerance))) * abs(reference.value)
            tolerance = max(Decimal(repr(float(self.absolute_tolerance))), relative)
            agrees = abs(found.value - reference.value) <= tolerance
        return agrees, f"the last number is {cut(found.text)}, expected {cut(reference.text)}"

    def check_reference(self, sample: StringThread) -> None:
        """It must have a number."""
        self._number_of(sample)

    def _number_of(self, sample: StringThread) -> Number:
        value = self.reference_value(sample)
        reference = last_number(str(value)) if isinstance(value, str) or is_finite_number(value) else None
        if reference is None or not reference.value.is_finite():
            raise self.unusable_reference(sample, "a finite number, or a text with one,")
        return reference


def last_number(text: str) -> Number | None:
    """The last number in a text, or None."""
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    last = matches[-1]
    with localcontext(_EXACT):
        if last["decimal"]:
            value = _decimal(last["decimal"], last["exponent"] or last["power"] or "0")
        else:
            value = _decimal(last["whole"] or "0") + _decimal(last["numerator"]) / _decimal(last["denominator"])
        return Number(last[0], value if last["sign"] in (None, "+") else -value)


def _decimal(digits: str, exponent: str = "0") -> Decimal:
    return Decimal(digits.replace(",", "") + "E" + exponent.replace("\u2212", "-"))
