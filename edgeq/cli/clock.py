"""The time that is written into signed and published files."""

from __future__ import annotations

import datetime
import os

from edgeq.errors import UsageError


def clock() -> datetime.datetime:
    """Return the time of this machine, which clients' clocks have too."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def now() -> datetime.datetime:
    """Return the time: SOURCE_DATE_EPOCH if set, so that what is written can be written again byte by byte.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is no time.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return clock()
    try:
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC)
    except (ValueError, OverflowError, OSError) as err:
        what = f"SOURCE_DATE_EPOCH must be seconds since 1970, got {text!r}"
        raise UsageError(what, "set it to a number, or unset it") from err
