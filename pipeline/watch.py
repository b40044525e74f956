"""What a decode process tells while it works: to the pool, which notices when it hangs, and to a profiler."""

from __future__ import annotations

# The stages of a worker's time.
WAIT, HAND_OVER, READ, SPLICE, DECODE, RESIZE = range(6)
STAGES = ("wait", "hand-over", "read", "splice", "decode", "resize")
ALL = -1  # as sample: the stage was for all pictures of a task


class Watch:
    """Nobody looks on."""

    def begin(self, sample: int) -> None:
        """A sample is read or decoded from now on."""

    def lap(self, stage: int, sample: int = ALL) -> None:
        """The time since the last lap went into this stage."""

    def rest(self) -> None:
        """The task is done."""


UNWATCHED = Watch()
