"""What a user should know and did not ask for: one line on the log, once."""

from __future__ import annotations

import functools
import logging


@functools.cache
def advise(line: str) -> None:
    """Say it on the logger ``headrace``, which prints to stderr unless the program has set up logging; not twice."""
    logging.getLogger("headrace").warning(line)
