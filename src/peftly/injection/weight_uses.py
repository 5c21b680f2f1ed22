"""Submodules whose weights the source code of a class reads, instead of calling the submodule."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from torch import nn

__all__ = ["weights_read"]

_PARAMETERS = ("weight", "bias")

_FACTS = frozenset(["dtype", "device", "shape", "size", "dim", "ndim", "numel", "requires_grad", "is_meta"])
"""Attributes of a tensor that do not depend on its values."""

_NOT_IN_CALLS = ("__init__", "_init_weights", "reset_parameters", "_reset_parameters", "tie_weights", "extra_repr")
"""Methods that no forward calls."""

_CHECKS = ("isinstance", "hasattr", "id", "GatheredParameters")


@cache
def weights_read(kind: type[nn.Module]) -> Mapping[str, bool]:
    """Return the submodules of which the methods of a class read the weight or the bias.

    The source code of the class and of its base classes below `nn.Module` is searched for `self.a.b.weight`. Reads of a
    dtype, a shape or a device do not count.

    Args:
        kind: class of a module.

    Returns:
        Whether the class calls the submodule too, by the relative path of the submodule. Empty if the source code is
        unknown.
    """
    paths: set[str] = set()
    called: set[str] = set()
    seen: set[str] = set()
    for base in kind.__mro__:
        definition = _definitions(base.__module__).get(base.__qualname__) if issubclass(base, nn.Module) else None
        if base is nn.Module or definition is None:
            continue
        for method in definition.body:
            if isinstance(method, ast.FunctionDef) and method.name not in _NOT_IN_CALLS and method.name not in seen:
                seen.add(method.name)
                own = method.args.args[0].arg if method.args.args else ""
                paths.update(_reads(method, own))
                called.update(_path(node.func, own) for node in ast.walk(method) if isinstance(node, ast.Call))
    return {path: path in called for path in paths}


def _reads(method: ast.FunctionDef, own: str) -> Iterator[str]:
    """Yield the paths of the submodules whose parameters a method reads; `own` is its name for the module."""
    ignored: set[ast.AST] = set()
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and node.attr in _FACTS:
            ignored.add(node.value)
        elif isinstance(node, ast.Call) and _name(node.func) in _CHECKS:
            ignored.update(node.args)
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and node.attr in _PARAMETERS and isinstance(node.ctx, ast.Load):
            path = _path(node.value, own)
            if path and node not in ignored:
                yield path


def _path(node: ast.AST, own: str) -> str:
    """Return `a.b` for the expression `self.a.b`, if `own` is "self", and an empty string for others."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed(names)) if isinstance(node, ast.Name) and node.id == own else ""


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def _definitions(module: str) -> dict[str, ast.ClassDef]:
    """Return the definitions of the classes in the source code of a module, by qualified name."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, ast.ClassDef] = {}
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        prefix, node = pending.pop()
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                inner = f"{prefix}{child.name}."
                if isinstance(child, ast.ClassDef):
                    found[inner[:-1]] = child
                else:
                    inner += "<locals>."
            pending.append((inner, child))
    return found
