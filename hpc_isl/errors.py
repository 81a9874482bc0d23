"""The one error a user sees: what was given, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's, or of the user's data; shown without a traceback, exit code 2."""


class AbortRun(UserError):
    """What all that is tried next would meet too, as a full disk: nothing goes on until it is mended."""


def nearest(given: object, legal: Iterable[object]) -> str:
    """The clause that ends an error about a name: the nearest legal one, then all of them.

    >>> nearest("Hoechts", ["Hoechst", "Brightfield"])
    "did you mean 'Hoechst'? There are: 'Hoechst', 'Brightfield'"
    """
    names = [str(name) for name in legal]
    if not names:
        return "there are none"
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    listed = ", ".join(repr(name) for name in names[:30]) + (", …" if len(names) > 30 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"There are: {listed}"
