"""The numbers of metrics.jsonl as TensorBoard's scalars."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"  # in --output
_FLUSH_EVERY_S = 10  # what a run that is killed may lose
# The second is the writer alone: TensorBoard itself depends on Pillow, which pip would put over pillow-simd.
_WRITERS = ("torch.utils.tensorboard", "tensorboardX")


def find_writer() -> Any:
    """The class SummaryWriter of what is installed. Raises ValueError where nothing is."""
    for module in _WRITERS:
        try:
            return importlib.import_module(module).SummaryWriter
        except ImportError:
            continue
    raise ValueError("--tensorboard needs a package that writes TensorBoard's files: pip install tensorboardX")


class Scalars:
    """Writes them. Close it: what is written last is then on the disk."""

    def __init__(self, directory: Path, *, behind: int):
        """``behind``: steps that are done. What an interrupted run wrote of later ones, TensorBoard will not show."""
        self._writer = find_writer()(str(directory), purge_step=behind + 1, flush_secs=_FLUSH_EVERY_S)

    def write(self, kind: str, values: dict[str, Any], step: int) -> None:
        """All numbers among ``values``, as KIND/NAME."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()
