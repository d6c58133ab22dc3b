"""The one exception for problems that the user can mend, and what a file system refuses."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

ADVICE = {
    errno.ENOSPC: "free some space there, then run it again",
    errno.EDQUOT: "free some of your quota there, then run it again",
    errno.EFBIG: "raise the limit of file sizes or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "get the permission or choose another place",
    errno.EPERM: "get the permission or choose another place",
    errno.EEXIST: "remove what lies there in its place",
    errno.ENOTDIR: "remove the file that lies in place of a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "look after the disk, then run it again",
    errno.ESTALE: "look after the network's disk, then run it again",
}
"""What to do where a file system refuses; other numbers are defects of the program."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence alone and exits with status 2; any other
    exception is a defect of the program and keeps its traceback.
    """


class Interrupted(Exception):
    """A training was asked to stop and has written a resume point, from which it goes on.

    The command line prints the sentence and exits with status 75, EX_TEMPFAIL of sysexits.h: the
    same command again is right.
    """


def explain_refusal(error: BaseException, path: Path | None = None) -> UserError | None:
    """The sentence for what a file system refused, by the exception that a library made of it.

    Args:
        error: looked at with what it was raised from.
        path: what was being written, if that is known.

    Returns:
        None if the file system is not to blame.
    """
    for each in _chain(error):
        # Rust and HDF5 tell the number in words only.
        told = re.search(r"\b(?:os error|errno =) (\d+)", str(each))
        number = int(told[1]) if told else getattr(each, "errno", None)
        if re.search(r"\d+ requested and \d+ written", str(each)):  # NumPy does not tell it
            number = errno.ENOSPC
        if number in ADVICE:
            place = path or getattr(each, "filename", None)
            action = f"{path} cannot be written" if path else f"{place or 'a file'} cannot be used"
            return UserError(f"{action} ({os.strerror(number)}); {ADVICE[number]}.")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
