"""Every name of torch_npu that the project uses is there, and takes the arguments that it is given.

Much of it runs on cards only, so a name that was mistyped, or has gone from torch_npu, would show there first. The
sources are read, not run: chains of attributes that begin at torch_npu, at torch.npu or at the device table's module,
also through variables. What a call returns is known for what is listed in RESULTS; anything else is an error.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.emulated_card import ROOT, EmulatedCard
from tests.test_emulated_npu import load, result_of, start

SOURCES = ["pipeline", "model", "tools", "train.py"]
ROOTS = ("torch_npu", "torch.npu")

# What calls return, where attributes of that are used: a type, or CALL where only calling tells
CALL = "by calling it: it takes no arguments and does nothing"
RESULTS = {
    "torch_npu.npu.npurt": CALL,
    "torch.npu.npurt": CALL,
    "torch_npu.npu_get_float_status": "torch.Tensor",
    "torch.npu.current_stream": "torch.npu.Stream",
    "torch.npu.default_stream": "torch.npu.Stream",
    "torch_npu.npu.current_stream": "torch.npu.Stream",
}
# Chains that only a run can tell, each with the reason why no list above can
RUN_TIME: dict[str, str] = {}


class Names(ast.NodeVisitor):
    """The uses in one file: chain, line, and the call's arguments where it is one."""

    def __init__(self) -> None:
        self.uses: list[dict[str, Any]] = []
        self._variables: list[dict[str, str]] = [{}]
        self._inner: set[int] = set()  # parts of longer chains

    def chain(self, node: ast.AST) -> str | None:
        """As text, beginning with one of ROOTS; a call in it is written ()."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self._variables) if node.id in scope), None)
        if isinstance(node, ast.Attribute):
            if node.attr == "_api":  # of the device table: the kind's module, of which npu's is one
                return "torch.npu"
            if isinstance(node.value, ast.Name) and (node.value.id, node.attr) == ("torch", "npu"):
                return "torch.npu"
            before = self.chain(node.value)
            return None if before is None else f"{before}.{node.attr}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("importlib.import_module", "import_module") and isinstance(node.args[0], ast.Constant):
                module = str(node.args[0].value)
                return module if module.split(".")[0] == "torch_npu" else None
            before = self.chain(node.func)
            return None if before is None else f"{before}()"
        return None

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == "torch_npu":
                self._variables[-1][alias.asname or "torch_npu"] = alias.name if alias.asname else "torch_npu"
                self._use(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").startswith(ROOTS):
            for alias in node.names:
                self._variables[-1][alias.asname or alias.name] = f"{node.module}.{alias.name}"
                self._use(f"{node.module}.{alias.name}", node.lineno)

    def _visit_scope(self, node: ast.AST) -> None:
        self._variables.append({})
        self.generic_visit(node)
        self._variables.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = _visit_scope  # noqa: N815

    def _bind(self, targets: list[ast.expr], value: ast.expr | None) -> None:
        chain = None if value is None else self.chain(value)
        for target in targets:
            if isinstance(target, ast.Name):
                self._variables[-1].pop(target.id, None)
                if chain is not None:
                    self._variables[-1][target.id] = chain

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        self._bind(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._bind([node.target], node.value)

    def visit_Call(self, node: ast.Call) -> None:
        chain = self.chain(node.func)
        if chain is not None:
            self._inner.add(id(node.func))
            spread = any(isinstance(argument, ast.Starred) for argument in node.args)
            spread = spread or any(keyword.arg is None for keyword in node.keywords)
            given = None if spread else [len(node.args), [keyword.arg for keyword in node.keywords]]
            self._use(chain, node.lineno, given)
            self._mark(node.func)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = self.chain(node)
        if chain is not None and id(node) not in self._inner:
            self._use(chain, node.lineno)
            self._mark(node)
        self.generic_visit(node)

    def _mark(self, node: ast.expr) -> None:
        while isinstance(node, ast.Attribute):
            node = node.value
            self._inner.add(id(node))

    def _use(self, chain: str, line: int, given: list[Any] | None = None) -> None:
        if chain not in ROOTS or given:
            self.uses.append({"chain": chain, "line": line, "given": given})


def uses_in(source: str, file: str) -> list[dict[str, Any]]:
    names = Names()
    names.visit(ast.parse(source))
    return [use | {"file": file} for use in names.uses]


def _files() -> Iterator[Path]:
    for name in SOURCES:
        path = ROOT / name
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def resolve(chain: str) -> Any:
    """What it names, or an exception that says what it does not."""
    parts = chain.split(".")
    found = importlib.import_module(parts[0].removesuffix("()"))
    name = parts[0]
    for part in parts[1:]:
        attribute = part.replace("()", "")
        found = getattr(found, attribute)
        name = f"{name}.{attribute}"
        for _ in range(part.count("()")):
            if not isinstance(found, type):
                known = RESULTS.get(name)
                if known is None:
                    raise LookupError(f"what {name} returns is not listed in RESULTS")
                found = found() if known == CALL else resolve(known)
            name += "()"
    return found


def problem(use: dict[str, Any]) -> str | None:
    where = f"{use['file']}:{use['line']}: {use['chain']}"
    if use["chain"] in RUN_TIME:
        return None
    try:
        found = resolve(use["chain"])
    except (AttributeError, LookupError, ImportError) as error:
        return f"{where}: {error}"
    if use["given"] is None:
        return None
    if not callable(found):
        return f"{where} is called, and is a {type(found).__name__}"
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return None  # compiled: it does not tell
    count, keywords = use["given"]
    holder, _, _ = use["chain"].rpartition(".")
    count += holder.endswith("()") and isinstance(resolve(holder), type)  # a method of what the type makes: self
    try:
        signature.bind(*[None] * count, **dict.fromkeys(keywords))
    except TypeError as error:
        return f"{where}{signature}: {error}"
    return None


def on_card_names(listed: str) -> None:
    load()
    uses = json.loads(Path(listed).read_text(encoding="utf-8"))
    print(json.dumps({"problems": [said for use in uses if (said := problem(use)) is not None]}))


BAD = """
import importlib
import torch
import torch_npu
from torch_npu.npu import no_such_import

def wrong(memory, numbers):
    torch_npu.npu.sinchronize()
    torch.npu.set_device()
    torch.npu.set_device(0, wait=True)
    runtime = torch_npu.npu.npurt()
    runtime.npuHostRegistre(1, 2, 3)
    importlib.import_module("torch_npu").no_such_name
    torch.npu.memory_stats().whatever
    torch.npu.Stream().wait_evnt(1)
    torch_npu.__version__()

class Device:
    def synchronize(self):
        self._api.synchronise(0)
"""
GOOD = """
import torch
import torch_npu
from torch_npu.npu import synchronize

def right(memory, numbers):
    torch_npu.npu.synchronize()
    torch.npu.set_device(0)
    torch.npu.set_device(*numbers)
    runtime = torch_npu.npu.npurt()
    runtime.npuHostRegister(1, 2, 3)
    torch.npu.Stream().wait_event(1)
    runtime = memory
    runtime.anything()
    torch_npu.npu_clear_float_status(torch.zeros(8, device="npu"))

class Device:
    def synchronize(self):
        self._api.synchronize(0)
        torch.npu.current_stream().wait_event(1)
"""


def test_names(card: EmulatedCard, tmp_path: Path) -> None:
    """One process looks up the project's, and two samples': the checker finds all that is wrong, and nothing else."""
    uses = [use for file in _files() for use in uses_in(file.read_text("utf-8"), str(file.relative_to(ROOT)))]
    listed = tmp_path / "uses.json"
    listed.write_text(json.dumps([*uses, *uses_in(BAD, "bad"), *uses_in(GOOD, "good")]), encoding="utf-8")
    problems = result_of(start(on_card_names, card.environment(), str(listed)))["problems"]
    wrong = [index for index, line in enumerate(BAD.splitlines(), 1) if _is_wrong(line)]
    found = sorted({int(said.split(":")[1]) for said in problems if said.startswith("bad:")})
    assert found == wrong
    assert set(RUN_TIME) <= {use["chain"] for use in uses}
    assert [said for said in problems if not said.startswith("bad:")] == []


def _is_wrong(line: str) -> bool:
    right = ("import importlib", "import torch", "def ", "class ", "runtime = ")
    return bool(line.strip()) and not line.strip().startswith(right)
