"""Weights and checkpoints: torch's zip files and its older ones, and .safetensors."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import check_fit, load_checkpoint
from model.inceptionv4 import InceptionV4
from model.weights import load_pretrained
from tests.fuzz.engine import Target
from tests.fuzz.mutations import mutate_bytes

_CANARY = "canary"  # a file in the input's folder, which nothing may make
_BLOCKS = (0, 0, 0)


class _Code:
    """What runs code where it is unpickled without care."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def _saved(content: object, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@cache
def model() -> InceptionV4:
    """The smallest network that there is; nothing but a file that fits may change it."""
    torch.manual_seed(0)
    return InceptionV4(2, _BLOCKS)


def _state() -> dict[str, Tensor]:
    """A state_dict of a few small tensors: what is looked for is not in their sizes."""
    draw = torch.Generator().manual_seed(1)
    return {
        "features.0.conv.weight": torch.rand(2, 3, 1, 1, generator=draw),
        "features.0.bn.running_mean": torch.rand(2, generator=draw),
        "features.0.bn.num_batches_tracked": torch.tensor(3),
        "last_linear.weight": torch.rand(2, 4, generator=draw),
        "last_linear.bias": torch.rand(2, generator=draw).half(),
    }


def _checkpoint(**others: Any) -> dict[str, Any]:
    return {
        "epoch": 3,
        "arch": "inceptionv4",
        "state_dict": _state(),
        "best_acc1": 1.5,
        "loader": {"version": 2, "epoch": 1, "position": 7, "data": "0123456789abcdef"},
        "sums": [7, 1.5, 2.0, 3.0],
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "amp": {"scale": 65536.0},
        "blocks": list(_BLOCKS),
        "classes": ["a", "b"],
        **others,
    }


_ODD: tuple[Any, ...] = (
    *(None, True, -1, 10**5000, 1.5, float("nan"), "", "a\nb", "x" * 5000, b"bytes", (), [], {}, [[]], {1: 2}),
    *(torch.tensor(1), torch.ones(0), torch.ones(2, dtype=torch.complex64), torch.empty(2, device="meta")),
    *(torch.eye(2).to_sparse(), torch.ones(()).expand(1 << 20, 1 << 20), torch.Size([1]), torch.device("cpu")),
    *({"a": None}, {"a\nb": torch.ones(1)}, {1: torch.ones(1)}, OrderedDict(a=1), torch.nn.Parameter(torch.ones(1))),
)


def _seeds() -> list[bytes]:
    whole, old = _saved(_checkpoint()), _saved(_checkpoint(), zipped=False)
    more = [_saved(_checkpoint(**{key: value})) for key in _checkpoint() for value in _ODD]
    bare = [_saved(value) for value in (_state(), *_ODD)]
    code = [
        _Code(os.system, f"touch {_CANARY}"),
        _Code(exec, f"open({_CANARY!r}, 'w')"),
        _Code(Path.touch, Path(_CANARY)),
        _Code(eval, "1"),
    ]
    run = [
        data for one in code for data in (_saved(_checkpoint(arch=one)), pickle.dumps(one), _saved([one], zipped=False))
    ]
    return [*[whole, old] * (len(more) // 2), *more, *bare, *run]


# Opcodes that a pickle may hold anywhere; and names that are to be called.
_OPCODES = (
    *(pickle.REDUCE, pickle.BUILD, pickle.POP, pickle.DUP, pickle.MARK, pickle.TUPLE, pickle.EMPTY_DICT, pickle.APPEND),
    *(pickle.SETITEMS, pickle.SETITEM, pickle.APPENDS, pickle.NONE, pickle.STOP, pickle.BINPERSID, pickle.MEMOIZE),
    *(pickle.NEWOBJ, pickle.EMPTY_TUPLE, pickle.EMPTY_LIST, pickle.TUPLE2, pickle.NEWTRUE, pickle.STACK_GLOBAL),
    *(b"cos\nsystem\n", b"cbuiltins\nexec\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"ccollections\nOrderedDict\n"),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"cbuiltins\nbytearray\n",
        b"c_codecs\nencode\n",
    ),
    *(
        b"cbuiltins\ngetattr\n",
        b"cpathlib\nPath\n",
        b"csubprocess\nPopen\n",
        b"ctorch._utils\n_rebuild_sparse_tensor\n",
    ),
    *(b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\x00\x00\x00\x80", b"\x8a\x09" + b"\xff" * 8 + b"\x00"),
    *(
        b"X\x06\x00\x00\x00canary",
        b"X\xff\xff\xff\x7f",
        b"B\xff\xff\xff\x7f",
        b"\x8d" + b"\xff" * 7 + b"\x0f",
        b"G" + b"\x7f" * 8,
    ),
    *(
        b"q\x00",
        b"h\x00",
        b"r\xff\xff\xff\x7f",
        b"j\xff\xff\xff\x7f",
        b"\x95" + b"\xff" * 8,
        b"I99999999\n",
        b"(" * 5000,
    ),
)


def _change_pickle(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0:
                out[at:at] = b"".join(rng.choices(_OPCODES, k=rng.randint(1, 4)))
            case 1 if len(out) > 2:
                out[-1:-1] = b"".join(rng.choices(_OPCODES, k=rng.randint(1, 4)))
            case 2:
                old = rng.choice(
                    (b"state_dict", b"epoch", b"arch", b"FloatStorage", b"torch._utils", b"storage", b"cpu", b"\x8a")
                )
                new = bytes(rng.choice(b"abcX\0\xff") for _ in old) if rng.random() < 0.7 else rng.choice(_OPCODES)
                out = out.replace(old, new, 1)
            case _:
                out = bytearray(mutate_bytes(rng, bytes(out), [], changes=1))
    return bytes(out)


def _mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    """The members of a zip changed and zipped again, or the bytes of the file."""
    data = rng.choice(seeds)
    if rng.random() < 0.15:
        return data
    if data[:2] != b"PK":
        return _change_pickle(rng, data) if rng.random() < 0.6 else mutate_bytes(rng, data, seeds[:2])
    if rng.random() < 0.3:
        near = rng.choice((0, len(data) - rng.randrange(1, 300))) if rng.random() < 0.6 else rng.randrange(len(data))
        near = max(0, near)
        return data[:near] + mutate_bytes(rng, data[near : near + 400], []) + data[near + 400 :]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(members))
        name, content = members[at]
        match rng.randrange(8):
            case 0:
                del members[at]
                members = members or [(name, content)]
            case 1:
                new = rng.choice(
                    (name.replace("data/", "../"), f"/{name}", "archive/constants.pkl", f"{name}x", "a" * 300)
                )
                members[at] = new, content
            case 2:
                members[at] = name, mutate_bytes(rng, content, [])
            case 3 if rng.random() < 0.2:
                members[at] = name, bytes(rng.choice((1 << 16, 1 << 22)))
            case _:
                pickles = [n for n, (member, _) in enumerate(members) if member.endswith("data.pkl")] or [at]
                name, content = members[pickles[0]]
                members[pickles[0]] = name, _change_pickle(rng, content)
    out = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED,) * 6 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(out, "w", kind) as archive:
        for number, (name, content) in enumerate(members):
            if name not in archive.namelist() or number % 2:
                archive.writestr(name, content)
    return out.getvalue()


def _safetensors() -> list[bytes]:
    from safetensors.torch import save

    heads = (b"{}", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"[" * 2000, b'{"__metadata__":{"a":1}}')
    return [save(_state()), *(struct.pack("<Q", len(head)) + head + bytes(4) for head in heads)]


def _mutate_safetensors(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = rng.choice(seeds)
    if rng.random() < 0.5:
        old = rng.choice((b"F32", b"[2,4]", b"[2]", b"shape", b"data_offsets", b":[", b"I64", b"0,", b"weight"))
        new = rng.choice(
            (b"F64", b"F8_E4M3", b"[-1]", b"[18446744073709551615]", b"[[", b"1e9,", b"null", b"", b"BOOL", b"\\n")
        )
        head = data[8 : 8 + int.from_bytes(data[:8], "little")].replace(old, new, rng.choice((1, 2, -1)))
        return struct.pack("<Q", len(head)) + head + data[8 + int.from_bytes(data[:8], "little") :]
    return mutate_bytes(rng, data, seeds)


def _check(suffix: str, data: bytes, rng: random.Random, folder: Path) -> str:
    """Load it as weights and as a checkpoint, from its own folder, in which the canary would appear."""
    path, resident = folder / f"w{suffix}", model()
    path.write_bytes(data)
    os.chdir(folder)
    before = _versions(resident)
    try:
        if rng.random() < 0.5:
            load_pretrained(resident, path, new_head=rng.random() < 0.5)
            return "loaded as weights"
        state = load_checkpoint(path)
        check_fit(state, path, blocks=_BLOCKS, classes=2, names=("a", "b"))
        assert isinstance(state["epoch"], int)
        assert all(isinstance(name, str) for name in state["state_dict"])
        return "loaded as a checkpoint"
    finally:
        if sys.exc_info()[0]:
            assert _versions(resident) == before, "refused, and something was loaded"
        assert [entry.name for entry in folder.iterdir()] == [path.name], "code was run"


def _versions(resident: InceptionV4) -> list[int]:
    """How often each tensor has been written to: torch counts it."""
    return [value._version for value in resident.state_dict().values()]


TARGETS = (
    Target(name="checkpoint", share=10, seeds=_seeds, mutate=_mutate, check=partial(_check, ".pth")),
    Target(
        name="safetensors",
        share=2,
        seeds=_safetensors,
        mutate=_mutate_safetensors,
        check=partial(_check, ".safetensors"),
    ),
)
