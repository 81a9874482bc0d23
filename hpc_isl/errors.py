"""Messages for users: the one error, with what was given, where, and what is right; counts with nouns.

A module of its own, because all others import it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error of the user's, or of the user's data; shown without a traceback, exit code 2."""


class AbortRun(UserError):
    """Raised when every further field would fail the same way, such as on a full disk: the run ends."""


def nearest(given: object, legal: Iterable[object]) -> str:
    """Returns the clause that ends an error about a name: the nearest legal one, then all of them.

    >>> nearest("Hoechts", ["Hoechst", "Brightfield"])
    "did you mean 'Hoechst'? There are: 'Hoechst', 'Brightfield'"
    """
    names = [str(name) for name in legal]
    if not names:
        return "there are none"
    matches = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    listed = ", ".join(repr(name) for name in names[:30]) + (", …" if len(names) > 30 else "")
    return f"did you mean {matches[0]!r}? There are: {listed}" if matches else f"there are: {listed}"


def many(count: int, noun: str, *verb: str) -> str:
    """Returns a number with its noun, and with the verb that agrees with it, as `is` or `are`.

    >>> many(1, "field"), many(1200, "field"), many(1, "field", "is", "are")
    ('1 field', '1,200 fields', '1 field is')
    """
    ending = "" if count == 1 else "es" if noun.endswith("x") else "s"
    return " ".join([f"{count:,} {noun}{ending}", *verb[count != 1 :][:1]])
