"""Regular expressions in settings. A file of an adapter may come from anybody, so they run for a limited time."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import regex

from peftly.errors import MethodError

__all__ = ["by_pattern", "first_matches"]

_MAX_CHARACTERS = 100_000
_MAX_REPEATS = 10_000
_SECONDS = 2.0
"""Of processor time, which the timeout of `regex` counts, too: a process may be stopped in between."""

_CANNOT_REPEAT = re.compile(r"[\w.\\-]*")
"""Expressions without repetition and alternatives, as most names are: their time is linear in the length of a path."""

_REPEAT = re.compile(r"\{(\d*),?(\d*)\}")


def first_matches(
    patterns: Sequence[str], paths: Iterable[str], setting: str, *, at_end: bool = False
) -> dict[str, str]:
    """Return the first of some regular expressions that matches, for each path that one of them matches.

    The expressions have the syntax and the meaning that they have for `re.fullmatch`.

    Args:
        patterns: regular expressions.
        paths: paths of modules.
        setting: name of the setting that holds the expressions, for messages.
        at_end: whether an expression may match an end of a path, instead of the whole path: one or more last names.

    Raises:
        MethodError: an expression is invalid, too large, or takes too long.
    """
    matched: dict[str, str] = {}
    remaining = list(dict.fromkeys(paths))
    seconds = _SECONDS
    for pattern in patterns:
        expression = rf"(.*\.)?({pattern})" if at_end else pattern
        _check(pattern, expression, setting)
        if _CANNOT_REPEAT.fullmatch(pattern):
            own = [path for path in remaining if re.fullmatch(expression, path)]
        else:
            start = time.process_time()
            own = _matches_in_time(pattern, expression, remaining, setting, start + seconds)
            seconds -= time.process_time() - start
        matched |= dict.fromkeys(own, pattern)
        remaining = [path for path in remaining if path not in matched]
    return matched


def by_pattern(pattern: Mapping[str, Any], paths: Collection[str], default: Any, setting: str) -> dict[str, Any]:
    """Return, for each path, the value of the first key that matches its end, as PEFT reads its `rank_pattern`.

    Args:
        pattern: values by ends of paths, or by regular expressions for ends.
        paths: paths of layers.
        default: value where no key matches.
        setting: name of the setting that holds the pattern, for messages.

    The first key in alphabetical order holds, because files store the keys in this order.

    Raises:
        MethodError: a key is an invalid regular expression, or takes too long.
    """
    matched = first_matches(sorted(pattern), paths, setting, at_end=True)
    return {path: pattern[matched[path]] if path in matched else default for path in paths}


def _check(pattern: str, expression: str, setting: str) -> None:
    repeats = 1
    for counts in _REPEAT.findall(pattern):
        repeats *= max(int(count.lstrip("0")[:9] or 1) for count in counts)
    if len(pattern) > _MAX_CHARACTERS or repeats > _MAX_REPEATS:  # `regex` expands what is repeated {n} times
        raise MethodError(
            f"{setting}={_shown(pattern)} is too large: it has {len(pattern)} characters and repeats parts up to "
            f"{repeats} times, and the limits are {_MAX_CHARACTERS} and {_MAX_REPEATS}; name the layers instead"
        )
    try:
        re.compile(pattern)
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise _invalid(pattern, setting, error) from None


def _matches_in_time(pattern: str, expression: str, paths: Iterable[str], setting: str, deadline: float) -> list[str]:
    try:
        compiled = regex.compile(expression)
        return [path for path in paths if compiled.fullmatch(path, timeout=max(0.0, deadline - time.process_time()))]
    except TimeoutError:
        raise MethodError(
            f"{setting}={_shown(pattern)} takes longer than {_SECONDS:g} s on the names of the layers, because it can "
            "match them in too many ways; name the layers instead"
        ) from None
    except (regex.error, RecursionError) as error:
        raise _invalid(pattern, setting, error) from None


def _invalid(pattern: str, setting: str, error: Exception) -> MethodError:
    return MethodError(f"{setting}={_shown(pattern)} is no regular expression: {error}")


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else f"{pattern[:80]}...")
