"""PTX text -> typed instructions. Names are resolved to their scope; each instruction keeps its line."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field

from acefast.sim.bits import DTYPE
from acefast.sim.errors import Unsupported


@dataclass(frozen=True)
class Name:
    """A register, special register, variable, label or function; ``negated`` for !%p."""

    text: str
    negated: bool = False


@dataclass(frozen=True)
class Number:
    """A literal as written: 12, -0x3, 0f3F800000, 0d..."""

    text: str


@dataclass(frozen=True)
class Address:
    """[base + offset]; base is None for an absolute address."""

    base: str | None
    offset: int


@dataclass(frozen=True)
class Group:
    """Several operands as one: {a, b}, (a, b) of a call, or the p|q of setp and shfl."""

    items: tuple[Operand, ...]


Operand = Name | Number | Address | Group


@dataclass(frozen=True)
class Instr:
    op: str  # "ld"
    mods: tuple[str, ...]  # ("global", "v4", "b32")
    operands: tuple[Operand, ...]
    pred: Name | None
    text: str
    line: int  # in the PTX, from 1
    loc: tuple[int, int] | None = None  # file number and line of the last .loc

    @property
    def type(self) -> str:
        """The last modifier that is a type."""
        return next((m for m in reversed(self.mods) if m in DTYPE), "")

    def has(self, *mods: str) -> bool:
        return any(m in self.mods for m in mods)

    def first(self, choices, default: str = "") -> str:
        """The first modifier that is one of ``choices``."""
        return next((m for m in self.mods if m in choices), default)


@dataclass
class Variable:
    space: str  # "shared", "local", "global", "const" or "param"
    name: str
    type: str
    align: int
    count: int  # elements; 0 for dynamic shared memory
    init: list[str] = field(default_factory=list)


@dataclass
class Function:
    name: str
    is_entry: bool
    params: list[Variable]
    returns: list[Variable]
    regs: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: dict[str, Variable] = field(default_factory=dict)
    code: list[Instr] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name -> index into code
    tables: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets


@dataclass
class Module:
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)

    def source(self, instr: Instr) -> str:
        return f"{self.files.get(instr.loc[0], '?')}:{instr.loc[1]}" if instr.loc else ""

    def entry(self, name: str | None = None) -> Function:
        """The kernel called ``name``, or the only one whose name contains it, or the only one."""
        entries = {n: f for n, f in self.functions.items() if f.is_entry}
        found = [entries[name]] if name in entries else [f for n, f in entries.items() if name is None or name in n]
        if len(found) != 1:
            raise ValueError(f"sim: kernel {name!r} must name one entry of the PTX, which has {sorted(entries)}")
        return found[0]


LINE_DIRECTIVE = re.compile(r"\.(loc|file|version|target|address_size)\b([^\n]*)")
VARIABLE = re.compile(
    r"\.(shared|local|global|const|param)\b(?:\s*\.align\s+(\d+))?\s*\.(\w+)\b(?:\s*\.ptr\b[.\w\s]*?(?=\s[\w$%]+$))?"
    r"(?:\s*\.align\s+(\d+))?\s*([\w$%]+)\s*(\[\s*\d*\s*\])?\s*(?:=\s*(.*))?$",
    re.S,
)
INSTRUCTION = re.compile(r"(?:@\s*(!?)\s*([%\w$]+)\s+)?([a-z][a-z0-9_]*)((?:\.[\w:]+)*)\s*(.*)$", re.S)


def parse(text: str) -> Module:
    """Reads a PTX module, as Triton, nvcc or NVRTC emit it."""
    return _Parser(text).module


def split_operands(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return [*parts, current.strip()] if current.strip() else parts


class _Parser:
    def __init__(self, text: str):
        text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)
        self.text = re.sub(r"//[^\n]*", "", text)
        self.module, self.at, self.loc = Module(), 0, None
        self.function: Function | None = None
        self.scopes: list[dict[str, str]] = []  # innermost last: name as written -> unique name
        self.newlines = [i for i, c in enumerate(self.text) if c == "\n"]
        while self._statement():
            pass

    def _line(self, at: int) -> int:
        return bisect.bisect_left(self.newlines, at) + 1

    def _statement(self) -> bool:
        """Consumes one statement; False at the end of the text."""
        rest = re.compile(r"\s*").match(self.text, self.at).end()
        self.at = rest
        if rest >= len(self.text):
            return False
        char = self.text[rest]
        if char == "{":
            self.scopes.append({})
            self.at += 1
        elif char == "}":
            self.scopes.pop()
            self.at += 1
            if not self.scopes:
                self.function = None
        elif m := LINE_DIRECTIVE.match(self.text, rest):
            self.at = m.end()
            self._line_directive(m.group(1), m.group(2))
        elif self.text.startswith(".section", rest):
            self.at = self.text.index("}", rest) + 1  # debug information
        elif m := re.compile(r"([\w$%]+)\s*:(?!:)").match(self.text, rest):
            self.function.labels[m.group(1)] = len(self.function.code)
            self.at = m.end()
        else:
            self._long_statement(rest)
        return True

    def _line_directive(self, name: str, words: str) -> None:
        if name == "loc":
            number, line = words.replace(",", " ").split()[:2]
            self.loc = (int(number), int(line))
        elif name == "file":
            number, path = re.match(r"\s*(\d+)\s+\"([^\"]*)\"", words).groups()
            self.module.files[int(number)] = path

    def _long_statement(self, start: int) -> None:
        head = re.compile(r"[^;{]*").match(self.text, start)
        is_header = bool(re.match(r"[^=]*\.(entry|func)\b", head.group()))
        if is_header and self.text[head.end()] == "{":
            self.at = head.end() + 1
            self._header(head.group())
            return
        end = self.text.index(";", start)
        self.at = end + 1
        if not is_header:  # else a declaration without a body
            self._simple(self.text[start:end].strip(), self._line(start))

    def _header(self, text: str) -> None:
        kind, returns, name, params = re.match(
            r".*?\.(entry|func)\s*(?:\.noreturn\s*)?(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?", text, re.S
        ).groups()
        read = lambda t: [self._variable(p.strip()) for p in (t or "").split(",") if p.strip()]  # noqa: E731
        self.function = Function(name, kind == "entry", read(params), read(returns))
        self.module.functions[name] = self.function
        self.scopes = [{}]
        self.loc = None

    def _variable(self, text: str) -> Variable:
        text = re.sub(r"^(\.(visible|extern|weak|common|managed)\s+)+", "", text)
        if text.startswith(".reg"):  # parameters of old-style functions
            raise Unsupported(f"sim: register parameters are not modelled: {text}")
        m = VARIABLE.match(text)
        if not m:
            raise Unsupported(f"sim: cannot read the declaration {text!r}")
        space, align1, type_, align2, name, array, init = m.groups()
        count = int(array.strip("[] ") or 0) if array else 1
        values = [v.strip() for v in init.strip().strip("{}").split(",")] if init else []
        count = len(values) if array and not count and values else count
        return Variable(space, name, type_, int(align1 or align2 or DTYPE[type_].itemsize), count, values)

    def _simple(self, text: str, line: int) -> None:
        if text.startswith((".pragma", ".maxn", ".reqn", ".minn", ".alias", ".attribute")):
            return
        if text.startswith(".branchtargets"):
            label = list(self.function.labels)[-1]
            self.function.tables[label] = [t.strip() for t in text.split(None, 1)[1].split(",")]
        elif text.startswith(".reg"):
            type_, names = re.match(r"\.reg\s+(?:\.v[24]\s+)?\.(\w+)\s+(.*)$", text, re.S).groups()
            for name in (n.strip() for n in names.split(",")):
                m = re.match(r"([%\w$]+)<(\d+)>$", name)
                for each in [f"{m.group(1)}{i}" for i in range(int(m.group(2)))] if m else [name]:
                    self.function.regs[self._declare(each)] = type_
        elif text.startswith("."):
            variable = self._variable(text)
            if self.function is None:
                self.module.variables[variable.name] = variable
            else:
                variable.name = self._declare(variable.name)
                self.function.variables[variable.name] = variable
        else:
            self._instruction(text, line)

    def _declare(self, name: str) -> str:
        """A unique name: inline assembly declares the same register in block after block."""
        taken, unique, n = (self.function.regs, self.function.variables), name, 1
        while unique in taken[0] or unique in taken[1]:
            n += 1
            unique = f"{name}@{n}"
        self.scopes[-1][name] = unique
        return unique

    def _resolve(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)

    def _instruction(self, text: str, line: int) -> None:
        match = INSTRUCTION.match(text)
        if not match or not self.scopes:
            raise Unsupported(f"sim: PTX line {line}: cannot read {text!r}")
        negated, pred, op, mods, operands = match.groups()
        self.function.code.append(
            Instr(
                op,
                tuple(m.replace("::cta", "") for m in mods.split(".")[1:]),
                tuple(self._operand(t) for t in split_operands(operands)),
                Name(self._resolve(pred), bool(negated)) if pred else None,
                re.sub(r"\s+", " ", text),
                line,
                self.loc,
            )
        )

    def _operand(self, text: str) -> Operand:
        if text[0] in "{(":
            return Group(tuple(self._operand(t) for t in split_operands(text[1:-1])))
        if text[0] == "[":
            base, _, offset = text[1:-1].replace(" ", "").partition("+")
            if re.match(r"-?\d", base):
                return Address(None, int(base, 0))
            return Address(self._resolve(base), int(offset or "0", 0))
        if "|" in text:
            return Group(tuple(self._operand(t.strip()) for t in text.split("|")))
        if re.match(r"-?\d", text):
            return Number(text)
        return Name(self._resolve(text.lstrip("!").strip()), text.startswith("!"))
