"""How a ring of batches is cut into tasks: for the loader, and for the forecast of what it will deliver."""

from __future__ import annotations

MOST_QUEUED = 128  # tasks on the queue at most: far fewer than the socket holds, so that no send ever waits
DISPATCH_BELOW = MOST_QUEUED // 2  # a batch is put on the queue while there are fewer: it is at most the other half


def rows_per_task(*, batch_size: int, slots: int, workers: int) -> int:
    """Pictures of a task: few enough that workers end at about the same time, with 8 tasks of the ring for each; and
    so many that the ring's tasks fit the queue.
    """
    return min(batch_size, -(-batch_size * slots // min(MOST_QUEUED, 8 * workers)))
