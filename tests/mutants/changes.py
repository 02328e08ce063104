"""Small changes of a module's text, each of which should fail some test."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
COMPARISONS |= {"is": "is not", "is not": "is", "in": "not in", "not in": "in"}
BOOLEANS = {"and": "or", "or": "and"}
SIGNS = {"+": "-", "-": "+", "+=": "-=", "-=": "+="}
CONSTANTS = {"0": "1", "1": "0", "True": "False", "False": "True"}
Node: TypeAlias = "ast.expr | ast.stmt"

OPERATOR = re.compile(rb"is not\b|not in\b|is\b|in\b|and\b|or\b|[-+]=|[<>]=|[=!]=|[-+<>]")


@dataclass(frozen=True)
class Change:
    """A replacement of bytes of a module; the changed code is on the lines from `line` to `last`."""

    name: str
    start: int
    end: int
    text: str
    line: int
    last: int

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


def changes(source: bytes) -> list[Change]:
    """Return all changes of a module, in the order of their positions."""
    return sorted(set(Finder(source).find()), key=lambda change: (change.start, change.end, change.text))


def is_valid(source: bytes) -> bool:
    """Return whether a module compiles."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class Finder:
    """Finds the changes of one module."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def find(self) -> Iterator[Change]:
        for node in ast.walk(ast.parse(self._source)):
            match node:
                case ast.Compare():
                    terms = [node.left, *node.comparators]
                    for left, right in pairwise(terms):
                        yield from self._operator("comparison turned", left, right, COMPARISONS)
                case ast.BoolOp():
                    for left, right in pairwise(node.values):
                        yield from self._operator("and/or swapped", left, right, BOOLEANS)
                case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
                    yield from self._operator("sign turned", left, right, SIGNS)
                case ast.AugAssign(target=left, op=ast.Add() | ast.Sub(), value=right):
                    yield from self._operator("sign turned", left, right, SIGNS)
                case ast.UnaryOp(op=ast.Not()):
                    start = self._start(node)
                    yield self._change("not left out", start, start + len("not "), "", node, node)
                case ast.Constant(value=bool() | int()) if (text := ast.unparse(node)) in CONSTANTS:
                    yield self._change(
                        f"{text} turned", self._start(node), self._end(node), CONSTANTS[text], node, node
                    )
                case ast.Expr(value=ast.Call() | ast.Await()):
                    yield self._left_out("call left out", node, node)
                case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete():
                    yield self._left_out("assignment left out", node, node)
                case ast.Raise():
                    yield self._left_out("raise left out", node, node)
                case ast.ExceptHandler(type=ast.Tuple(elts=classes)):
                    yield from self._class_left_out("exception left out", classes)
                case ast.Call(func=ast.Name(id="suppress"), args=classes) if len(classes) > 1:
                    yield from self._class_left_out("exception left out", classes)
            if isinstance(node, ast.Try) and node.finalbody:
                yield self._left_out("clean-up left out", node.finalbody[0], node.finalbody[-1])
            if isinstance(node, (ast.If, ast.IfExp)) and isinstance(node.test, (ast.Name, ast.Attribute, ast.Call)):
                start = self._start(node.test)
                yield self._change("condition turned", start, start, "not ", node.test, node.test)

    def _operator(self, name: str, left: ast.expr, right: ast.expr, others: dict[str, str]) -> Iterator[Change]:
        """Replace the operator between two operands."""
        between = self._source[self._end(left) : self._start(right)]
        if (found := OPERATOR.search(between)) and (text := found[0].decode()) in others:
            start = self._end(left) + found.start()
            yield self._change(name, start, start + len(text), others[text], left, right)

    def _class_left_out(self, name: str, classes: list[ast.expr]) -> Iterator[Change]:
        """Leave out one of several classes, with the comma before or after it."""
        for index, kind in enumerate(classes):
            start = self._end(classes[index - 1]) if index else self._start(kind)
            end = self._end(kind) if index else self._start(classes[1])
            text = "," if len(classes) == 2 and index else ""
            yield self._change(name, start, end, text, classes[0], classes[-1])

    def _left_out(self, name: str, first: ast.stmt, last: ast.stmt) -> Change:
        return self._change(name, self._start(first), self._end(last), "pass", first, last)

    def _change(self, name: str, start: int, end: int, text: str, first: Node, last: Node) -> Change:
        return Change(name, start, end, text, first.lineno, last.end_lineno or last.lineno)

    def _start(self, node: Node) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def _end(self, node: Node) -> int:
        return self._lines[node.end_lineno - 1] + node.end_col_offset
