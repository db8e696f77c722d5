"""Which messages are rows of sources, perhaps times a weight for each edge: read from their source.

Only what a function says literally is believed. Its result for some inputs would prove nothing of
its result in another state of the layer, as in training.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Message", "read_message"]

_COLUMN_VIEWS = ("view", "reshape", "unsqueeze")


@dataclass(frozen=True, slots=True)
class Message:
    """``weight * rows``, or ``rows``: what a ``message`` function returns."""

    rows: str
    """The argument of ``propagate`` whose rows are gathered: "x" for ``x_j``."""

    weight: str | None = None
    """The argument that holds a factor for each edge; None where there is none."""

    reshaped: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """Methods that bring the weight into the shape in which it multiplies the rows."""

    optional: bool = False
    """Whether the rows alone are the message where the weight is None."""

    def factor(self, weight: Tensor) -> Tensor:
        """The weight in the shape in which it multiplies the gathered rows."""
        for method, arguments in self.reshaped:
            weight = getattr(weight, method)(*arguments)
        return weight


def read_message(function: Callable[..., Any]) -> Message | None:
    """What a layer's ``message`` returns; None where it is anything else or cannot be read.

    >>> from torch_geometric.nn import GCNConv, SAGEConv, TransformerConv
    >>> read_message(SAGEConv.message)
    Message(rows='x', weight=None, reshaped=(), optional=False)
    >>> read_message(GCNConv.message).weight
    'edge_weight'
    >>> read_message(TransformerConv.message) is None
    True
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = tree.body[0]
    if len(tree.body) != 1 or not isinstance(definition, ast.FunctionDef):
        return None
    arguments = definition.args
    if definition.decorator_list or arguments.vararg or arguments.kwarg:
        return None
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    found = _read_body(definition.body)
    if found is None or f"{found.rows}_j" not in names:
        return None
    if found.weight is not None and found.weight not in names:
        return None
    read = {f"{found.rows}_j", found.weight}
    return found if set(names[1:]) <= read else None


def _read_body(body: list[ast.stmt]) -> Message | None:
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]  # the docstring
    match body:
        case [ast.Return(value=ast.expr() as value)]:
            return _read_value(value)
        case [ast.If(test=test, body=[ast.Return(value=ast.expr() as yes)], orelse=orelse), *rest]:
            match orelse or rest:
                case [ast.Return(value=ast.expr() as no)] if not (orelse and rest):
                    return _read_choice(test, yes, no)
    return None


def _read_value(value: ast.expr) -> Message | None:
    if isinstance(value, ast.IfExp):
        return _read_choice(value.test, value.body, value.orelse)
    rows = _read_rows(value)
    if rows is not None:
        return Message(rows)
    match value:
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            pass
        case ast.Call(
            func=ast.Attribute(value=ast.Name("torch"), attr="mul"), args=[left, right], keywords=[]
        ):
            pass
        case _:
            return None
    for one, other in ((left, right), (right, left)):
        rows, weight = _read_rows(one), _read_weight(other)
        if rows is not None and weight is not None:
            return Message(rows, *weight)
    return None


def _read_choice(test: ast.expr, yes: ast.expr, no: ast.expr) -> Message | None:
    """``rows if weight is None else weight * rows``, or the same the other way round."""
    match test:
        case ast.Compare(ast.Name(name), [ast.Is()], [ast.Constant(None)]):
            without, with_weight = _read_value(yes), _read_value(no)
        case ast.Compare(ast.Name(name), [ast.IsNot()], [ast.Constant(None)]):
            without, with_weight = _read_value(no), _read_value(yes)
        case _:
            return None
    if without is None or with_weight is None or without != Message(with_weight.rows):
        return None
    if with_weight.weight != name or with_weight.optional:
        return None
    return Message(with_weight.rows, name, with_weight.reshaped, optional=True)


def _read_rows(value: ast.expr) -> str | None:
    """The name of the rows: x for ``x_j``."""
    is_rows = isinstance(value, ast.Name) and value.id.endswith("_j") and len(value.id) > 2
    return value.id[:-2] if is_rows else None  # type: ignore[attr-defined]


def _read_weight(value: ast.expr) -> tuple[str, tuple[tuple[str, tuple[Any, ...]], ...]] | None:
    """The name and the methods of ``w``, ``w.view(-1, 1)``, ``w.unsqueeze(-1)``, ``w[:, None]``."""
    match value:
        case ast.Name(name) if name[-2:] not in ("_i", "_j"):
            return name, ()
        case ast.Call(func=ast.Attribute(value=inner, attr=method), args=args, keywords=[]):
            arguments = _read_integers(args)
            if method not in _COLUMN_VIEWS or arguments is None:
                return None
        case ast.Subscript(
            value=inner,
            slice=ast.Tuple([ast.Slice(lower=None, upper=None, step=None), ast.Constant(None)]),
        ):
            method, arguments = "unsqueeze", (1,)
        case _:
            return None
    found = _read_weight(inner)
    return None if found is None else (found[0], (*found[1], (method, arguments)))


def _read_integers(values: list[ast.expr]) -> tuple[int, ...] | None:
    found = []
    for value in values:
        try:
            number = ast.literal_eval(value)
        except ValueError:
            return None
        if not isinstance(number, int):
            return None
        found.append(number)
    return tuple(found)
