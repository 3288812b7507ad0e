"""One kernel as basic blocks: calls inlined, blocks laid out so that lanes that part meet again early."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from acefast.sim.errors import Unsupported
from acefast.sim.ptx import Address, Function, Group, Instr, Module, Name, Operand, Variable

ENDS = ("bra", "brx", "ret", "exit")


@dataclass
class Block:
    start: int  # index of its first instruction in Program.code
    end: int
    next: int  # where execution goes on if nothing branches; -1 leaves the kernel


@dataclass
class Program:
    """An entry function ready to run; branch targets are positions in ``code``."""

    name: str
    params: list[Variable]
    code: list[Instr]
    blocks: dict[int, Block]  # by start
    labels: dict[str, int]
    tables: dict[str, list[str]]
    regs: dict[str, str]
    variables: dict[str, Variable]
    maybe_unassigned: set[str] = field(default_factory=set)  # registers some path reads before it writes them


def build(module: Module, name: str | None = None) -> Program:
    """Inlines, splits and orders the kernel called ``name`` (see Module.entry)."""
    entry = module.entry(name)
    flat = Function(entry.name, True, entry.params, [])
    _inline(module, entry, flat, {}, "", None, [])
    heads = {0, *flat.labels.values(), *(i + 1 for i, x in enumerate(flat.code) if x.op in ENDS)} - {len(flat.code)}
    starts = sorted(heads)
    ends = dict(zip(starts, [*starts[1:], len(flat.code)]))
    successors = {s: _successors(flat, e) for s, e in ends.items()}
    order = _order(starts, successors, 0)
    position, code, blocks = {len(flat.code): -1}, [], {}
    for start in order:
        position[start] = len(code)
        code += flat.code[start : ends[start]]
    for start in order:
        last = flat.code[ends[start] - 1]
        falls = last.op not in ENDS or (last.pred is not None)
        after = position.get(ends[start], -1) if falls else -1
        blocks[position[start]] = Block(position[start], position[start] + ends[start] - start, after)
    labels = {n: position[i] for n, i in flat.labels.items() if i in position}
    program = Program(
        entry.name, entry.params, code, blocks, labels, flat.tables, flat.regs, {**module.variables, **flat.variables}
    )
    program.maybe_unassigned = _maybe_unassigned(flat, order, ends, successors)
    return program


def targets(instr: Instr, tables: dict[str, list[str]]) -> list[str]:
    """The labels a bra or brx.idx may go to."""
    if instr.op == "bra":
        return [instr.operands[0].text]
    return tables[instr.operands[1].text] if instr.op == "brx" else []


def _successors(function: Function, end: int) -> list[int]:
    last = function.code[end - 1]
    found = [function.labels[t] for t in targets(last, function.tables)]
    if last.op not in ENDS or last.pred is not None:
        found.append(end)
    return [f for f in found if f < len(function.code)]


def _inline(module, function, out, names, prefix, leave, stack) -> None:
    """Appends ``function`` to ``out``; ``names`` maps its parameters, ``leave`` is the label its ret goes to."""
    if function.name in stack:
        raise Unsupported(f"sim: {function.name} calls itself, which is not modelled")
    own = lambda n: names.get(n, prefix + n)  # noqa: E731
    local = {*function.regs, *function.variables, *names}
    out.regs.update({prefix + r: t for r, t in function.regs.items()})
    out.variables.update({prefix + n: replace(v, name=prefix + n) for n, v in function.variables.items()})
    out.tables.update({prefix + n: [prefix + t for t in ts] for n, ts in function.tables.items()})
    rename = lambda n: own(n) if n in local else prefix + n if n in function.labels else n  # noqa: E731
    at = {}
    for label, i in function.labels.items():
        at.setdefault(i, []).append(prefix + label)
    for i, instr in enumerate([*function.code, None]):
        out.labels.update(dict.fromkeys(at.get(i, []), len(out.code)))
        if instr is None:
            break
        moved = instr
        if prefix or names:
            pred = instr.pred and Name(rename(instr.pred.text), instr.pred.negated)
            moved = replace(instr, pred=pred, operands=tuple(_renamed(o, rename) for o in instr.operands))
        if instr.op == "call" and not _is_assert(instr):
            _call(module, moved, out, f"{prefix}{len(out.code)}:", [*stack, function.name])
        elif instr.op == "ret" and leave:
            out.code.append(replace(moved, op="bra", operands=(Name(leave),)))
        else:
            out.code.append(moved)


def _call(module, instr, out, prefix, stack) -> None:
    groups = [o.items for o in instr.operands if isinstance(o, Group)]
    callee = next(o.text for o in instr.operands if isinstance(o, Name))
    function = module.functions.get(callee)
    if function is None or instr.pred is not None:
        raise Unsupported(f"sim: PTX line {instr.line}: only direct calls of functions with a body run: {instr.text}")
    formal = [*function.returns, *function.params]
    actual = [o.text for group in groups for o in group]
    leave = prefix + "return"
    _inline(module, function, out, dict(zip((v.name for v in formal), actual)), prefix, leave, stack)
    out.labels[leave] = len(out.code)


def _is_assert(instr: Instr) -> bool:
    return any(isinstance(o, Name) and o.text == "__assertfail" for o in instr.operands)


def _renamed(operand: Operand, rename) -> Operand:
    if isinstance(operand, Name):
        return Name(rename(operand.text), operand.negated)
    if isinstance(operand, Address):
        return Address(operand.base and rename(operand.base), operand.offset)
    if isinstance(operand, Group):
        return Group(tuple(_renamed(o, rename) for o in operand.items))
    return operand


def _order(nodes: list[int], successors: dict[int, list[int]], entry: int) -> list[int]:
    """Topological order, loop by loop: a block comes after all that lead to it, a loop's exit after its body.

    Lanes always run lowest position first, so this order makes those that left a branch wait where it ends.
    """
    inside = set(nodes)
    order = []
    for component in _components(entry, successors, inside):
        if len(component) == 1:
            order += component
            continue
        outer = inside - set(component)
        header = entry if entry in component else next(n for n in component if any(n in successors[o] for o in outer))
        cut = {n: [s for s in successors[n] if s != header] for n in component}
        order += _order(component, cut, header)
    return order


def _components(entry: int, successors, inside: set[int]) -> list[list[int]]:
    """Strongly connected components reachable from ``entry``, sources first (Tarjan, without recursion)."""
    index, low, on, stack, out = {}, {}, set(), [], []
    work = [(entry, iter(successors[entry]))]
    index[entry] = low[entry] = 0
    stack.append(entry)
    on.add(entry)
    while work:
        node, rest = work[-1]
        for nxt in rest:
            if nxt not in inside:
                continue
            if nxt not in index:
                index[nxt] = low[nxt] = len(index)
                stack.append(nxt)
                on.add(nxt)
                work.append((nxt, iter(successors[nxt])))
                break
            if nxt in on:
                low[node] = min(low[node], index[nxt])
        else:
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[node])
            if low[node] == index[node]:
                cut = stack.index(node)
                component = stack[cut:]
                del stack[cut:]
                on -= set(component)
                out.append(sorted(component))
    return out[::-1]


def written_and_read(instr: Instr, regs: dict[str, str]) -> tuple[list[str], list[str]]:
    """Registers an instruction assigns and uses."""

    def names(operand: Operand) -> list[str]:
        if isinstance(operand, Group):
            return [n for o in operand.items for n in names(o)]
        name = operand.text if isinstance(operand, Name) else operand.base if isinstance(operand, Address) else None
        return [name] if name in regs else []

    stores = instr.op in ("st", "red", "bar", "barrier", "cp", "bra", "brx", "call", "prefetch", "discard")
    if instr.op in ("bar", "barrier") and instr.has("red"):
        stores = False
    first = 0 if stores or not instr.operands or isinstance(instr.operands[0], Address) else 1
    written = [n for o in instr.operands[:first] for n in names(o)]
    read = [n for o in instr.operands[first:] for n in names(o)]
    return written, read + ([instr.pred.text] if instr.pred else [])


def _maybe_unassigned(function: Function, order, ends, successors) -> set[str]:
    """Definite assignment over the graph; a predicated write does not count, so the answer may be too long."""
    facts = {s: [(i, *written_and_read(i, function.regs)) for i in function.code[s : ends[s]]] for s in order}
    gains = {s: {w for i, ws, _ in facts[s] if i.pred is None for w in ws} for s in order}
    entering = {s: None for s in order}  # None: everything, not reached yet
    entering[order[0]] = set()
    changed = True
    while changed:
        changed = False
        for s in order:
            if entering[s] is None:
                continue
            leaving = entering[s] | gains[s]
            for t in successors[s]:
                new = leaving if entering[t] is None else entering[t] & leaving
                if entering[t] is None or len(new) != len(entering[t]):
                    entering[t] = set(new)
                    changed = True
    found = set()
    for s in order:
        have = set(entering[s] or ())
        for instr, written, read in facts[s]:
            found |= {r for r in read if r not in have}
            if instr.pred is None:
                have |= set(written)
    return found
