"""A trained network from a file, with what is known of it: its class names, and the size of its pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from .inceptionv4 import MIN_IMAGE_SIZE, InceptionV4
from .weights import WeightsError, load_pretrained, read_file, shape_of

DEFAULT_IMAGE_SIZE = 299


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A network in ``eval``, on the CPU, in fp32."""

    model: InceptionV4
    classes: tuple[str, ...]  # as many as the network has outputs; numbers where nobody knows the names
    image_size: int  # pixels
    note: str  # one line: what was loaded


def load_trained(path: Path, *, classes: Sequence[str] | None = None, image_size: int | None = None) -> Trained:
    """Read a checkpoint of train.py's, or weights of Cadene's, timm's or ours; averaged weights where it has them.

    ``classes`` and ``image_size`` go before what the file says. Raises WeightsError for a file that cannot be used, and
    where there are not as many names as outputs.
    """
    contents = read_file(path)
    outputs, blocks = shape_of(contents, path)
    known = contents if isinstance(contents, Mapping) and "state_dict" in contents else {}
    size = known.get("image_size", DEFAULT_IMAGE_SIZE) if image_size is None else image_size
    if not isinstance(size, int) or size < MIN_IMAGE_SIZE:
        raise WeightsError(f"{path}: pictures must have at least {MIN_IMAGE_SIZE} pixels, was {str(size)[:20]}")
    theirs = known.get("classes")
    names = list(classes or (theirs if isinstance(theirs, list | tuple) else ()))
    if len(names) == outputs - 1 == 1000 and not known:
        outputs -= 1  # the background, which TensorFlow's weights begin with, is left out
    elif names and not classes:  # of a checkpoint with --num-classes
        names += [f"unused {number}" for number in range(len(names), outputs)]
    if names and len(names) != outputs:
        raise WeightsError(f"{path} tells {outputs:,} classes apart, there are {len(names):,} names")
    model = InceptionV4(num_classes=outputs, blocks=blocks).eval()
    note = load_pretrained(model, path)
    return Trained(
        model=model, classes=tuple(map(str, names or range(outputs))), image_size=size, note=f"{note}; {size} px"
    )


def read_classes(path: Path) -> list[str]:
    """Class names from a text file, one a line, in the order of the outputs. Raises WeightsError."""
    try:
        names = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"--classes {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not names or not all(name.strip() for name in names):
        raise WeightsError(f"--classes {path}: wanted one name a line, found {'an empty line' if names else 'nothing'}")
    return [name.strip() for name in names]
