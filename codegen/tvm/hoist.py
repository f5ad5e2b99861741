"""Buffers declared inside a vectorized loop, moved in front of it: TVM's vectorizer does not
give each lane its own.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.stmt import AllocBuffer, AttrStmt, For, ForKind, IfThenElse, SeqStmt, Stmt, While


def hoist_buffers(stmt: Stmt) -> Stmt:
    """The statement with every allocation of a vectorized loop's body right before the loop."""
    if isinstance(stmt, SeqStmt):
        return _sequence([hoist_buffers(s) for s in stmt.seq])
    if isinstance(stmt, For):
        if stmt.kind == ForKind.VECTORIZED:
            return _hoisted(stmt)
        return _loop(stmt, hoist_buffers(stmt.body))
    if isinstance(stmt, IfThenElse):
        otherwise = None if stmt.else_case is None else hoist_buffers(stmt.else_case)
        return IfThenElse(stmt.condition, hoist_buffers(stmt.then_case), otherwise)
    if isinstance(stmt, AttrStmt):
        return AttrStmt(stmt.node, stmt.attr_key, stmt.value, hoist_buffers(stmt.body))
    if isinstance(stmt, While):
        return While(stmt.condition, hoist_buffers(stmt.body))
    return stmt


def _hoisted(loop: For) -> Stmt:
    """The body of a vectorized loop is straight code: its allocations stand at its top level."""
    body = loop.body.seq if isinstance(loop.body, SeqStmt) else [loop.body]
    buffers = [s for s in body if isinstance(s, AllocBuffer)]
    rest = [s for s in body if not isinstance(s, AllocBuffer)]
    return _sequence([*buffers, _loop(loop, _sequence(rest))])


def _loop(loop: For, body: Stmt) -> For:
    return For(
        loop.loop_var,
        loop.min,
        loop.extent,
        loop.kind,
        body,
        loop.thread_binding,
        loop.annotations,
        loop.step,
    )


def _sequence(parts: list[Stmt]) -> Stmt:
    flat = [s for p in parts for s in (p.seq if isinstance(p, SeqStmt) else [p])]
    return (
        flat[0]
        if len(flat) == 1
        else SeqStmt(flat)
        if flat
        else tirx.Evaluate(tirx.IntImm("int32", 0))
    )
