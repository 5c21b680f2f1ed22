"""Submodules that the source code of a class uses, and those whose weights it reads instead of calling them."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel

__all__ = ["ANY", "called_with", "changes_weights", "is_callable", "paths_used", "returns_several", "weights_read"]

_PARAMETERS = ("weight", "bias")

_FACTS = frozenset(["dtype", "device", "shape", "size", "dim", "ndim", "numel", "requires_grad", "is_meta"])
"""Attributes of a tensor that do not depend on its values."""

_NOT_IN_CALLS = re.compile(r"__\w+__|_?(init|reset|tie|set|resize|get_resized|load|extra)_\w+")
"""Names of methods that no forward calls."""

ANY = "*"
"""Path for a submodule that the source code does not name, as in `self.layers[0].weight`."""

_CHECKS = ("isinstance", "hasattr", "id", "GatheredParameters")


@cache
def weights_read(kind: type[nn.Module]) -> Mapping[str, bool]:
    """Return the submodules of which the methods of a class read the weight or the bias.

    The source code of the class and of its base classes below `nn.Module` is searched for `self.a.b.weight`. Reads of a
    dtype, a shape or a device do not count.

    Args:
        kind: class of a module.

    Returns:
        Whether the class calls the submodule too, by the relative path of the submodule or `ANY`. Empty if the source
        code is unknown.
    """
    paths: set[str] = set()
    called: set[str] = set()
    for method, own in _methods(kind):
        paths.update(_reads(method, own))
        called.update(_path(node.func, own) for node in ast.walk(method) if isinstance(node, ast.Call))
    return {path: path in called or path == ANY for path in paths}


@cache
def paths_used(kind: type[nn.Module]) -> frozenset[str]:
    """Return the path `a.b` of every expression `self.a.b` in the methods of a class, without that of `self.a` in it.

    Args:
        kind: class of a module.

    Returns:
        Relative paths of submodules, other attributes and methods. Empty if the source code is unknown.
    """
    paths: set[str] = set()
    for method, own in _methods(kind):
        attributes = [node for node in ast.walk(method) if isinstance(node, ast.Attribute)]
        inner = {node.value for node in attributes}
        paths.update(_path(node, own) for node in attributes if node not in inner)
    return frozenset(paths)


@cache
def called_with(kind: type[nn.Module], argument: str) -> frozenset[str]:
    """Return the path `a.b` of every call `self.a.b(argument)` in the methods of a class.

    Args:
        kind: class of a module.
        argument: name of a variable.
    """
    return frozenset(
        _path(node.func, own)
        for method, own in _methods(kind)
        for node in ast.walk(method)
        if isinstance(node, ast.Call) and any(_name(value) == argument for value in node.args)
    )


@cache
def returns_several(kind: type[nn.Module]) -> bool:
    """Return whether the forward of a class returns several values (`return scores, logits`), as its source code says.

    Args:
        kind: class of a module.
    """
    return any(
        isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
        for method, _ in _methods(kind)
        for node in ast.walk(method)
        if method.name == "forward"
    )


@cache
def is_callable(kind: type[nn.Module]) -> bool:
    """Return whether a class has a forward; others use its modules through other methods, or as containers.

    Args:
        kind: class of a module.
    """
    if kind.forward is nn.Module.forward:
        return False
    forward = next((method for method, _ in _methods(kind) if method.name == "forward"), None)
    return forward is None or not isinstance(_statements(forward)[0], ast.Raise)


def _statements(method: ast.FunctionDef) -> list[ast.stmt]:
    """Return the statements of a method without its docstring, or its docstring alone."""
    return method.body[1:] if ast.get_docstring(method) is not None and len(method.body) > 1 else method.body


@cache
def changes_weights(kind: type[nn.Module]) -> str | None:
    """Return the method, called by the forward of a class, that changes weights of submodules in place, or None.

    Args:
        kind: class of a module.
    """
    methods = list(_methods(kind))
    pending, seen = ["forward"], {"forward"}
    while pending:
        name = pending.pop()
        for method, own in methods:
            if method.name == name:
                if _changes_in_place(method, own):
                    return name
                called = {node.attr for node in ast.walk(method) if isinstance(node, ast.Attribute)}
                pending += called - seen
                seen |= called
    return None


def _changes_in_place(method: ast.FunctionDef, own: str) -> bool:
    """Return whether a method calls a function such as `mul_` of the weight of a submodule."""
    for node in ast.walk(method):
        function = node.func if isinstance(node, ast.Call) else None
        if not isinstance(function, ast.Attribute) or not function.attr.endswith("_") or function.attr.endswith("__"):
            continue
        weight = function.value
        if isinstance(weight, ast.Attribute) and weight.attr == "data":
            weight = weight.value
        if isinstance(weight, ast.Attribute) and weight.attr in _PARAMETERS:
            is_own = isinstance(weight.value, ast.Name) and weight.value.id == own
            if not is_own and function.attr != "requires_grad_":
                return True
    return False


def _methods(kind: Any) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Yield the methods that a forward of the class may call, each with its name for the module (`self`)."""
    overridden: set[str] = set()
    for base in kind.__mro__:
        if not issubclass(base, nn.Module) or base in (nn.Module, PreTrainedModel):
            continue
        definition = _definitions(base.__module__).get(base.__qualname__)
        if definition is None:
            continue
        for method in definition.body:
            if isinstance(method, ast.FunctionDef) and method.name not in overridden:
                if not any(isinstance(node, ast.Name) and node.id == "super" for node in ast.walk(method)):
                    overridden.add(method.name)
                if not _NOT_IN_CALLS.fullmatch(method.name):
                    yield method, method.args.args[0].arg if method.args.args else ""


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
            is_own = isinstance(node.value, ast.Name) and node.value.id == own
            if not is_own and node not in ignored:
                yield _path(node.value, own) or ANY


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
