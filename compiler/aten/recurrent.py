"""Recurrent ops that a model or a capture helper calls by name."""

from __future__ import annotations

from ...ir.node import Node
from ...ir.ops import recurrent
from .table import Call, Table

TABLE = Table()


@TABLE("ferrule.linear_scan")
def linear_scan(
    call: Call, q: Node, k: Node, v: Node, log_decay: Node, beta: Node | None = None
) -> Node:
    """The op of the same name."""
    return recurrent.linear_scan(q, k, v, log_decay, *(() if beta is None else (beta,)))
