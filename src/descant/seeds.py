"""Seeds: independent streams of random numbers, named by their purpose."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of ``parts``: equal parts, equal seed, on every machine.

    Everything random in descant is seeded this way (training by run seed, step and micro-batch; sampling by
    callback name and example), so that nothing depends on the process-wide generators.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = f"{type(part).__name__}:{part}"
        digest.update(f"{len(text)}:{text}".encode())
    return int.from_bytes(digest.digest(), "big") >> 1
