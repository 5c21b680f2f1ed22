"""Data of the speed benchmark: instructions, labelled sentences and chats, made from documentation strings.

Instructions have an optional input and an answer; chats share a system message. Only the lengths of the texts matter,
not their meaning. The texts are documentation strings of the installed SciPy and scikit-learn (`constraints.txt` pins
the versions); this repository has no copy of them.
"""

import importlib
import inspect
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["KINDS", "SYSTEM_MESSAGE", "write_rows"]

PARTS = {
    "statistics": ("scipy.stats", "scipy.optimize", "scipy.special", "scipy.spatial.distance"),
    "signals": ("scipy.signal", "scipy.linalg", "scipy.ndimage", "scipy.interpolate"),
    "learning": ("sklearn.metrics", "sklearn.linear_model", "sklearn.preprocessing", "sklearn.ensemble"),
}
QUESTIONS = (
    "Explain what {name} does.",
    "What is {name} for, and when would I use it?",
    "Describe {name} to somebody who works with {part} but has never called it.",
    "I found {name} in a script about {part}. Say in a few sentences what it computes.",
)
QUESTIONS_WITH_INPUT = (
    "Say what a function of this name and with these parameters computes: {name}.",
    "Read the description of the first parameters of {name} and tell me what the whole function is good for.",
)
LONGEST_ANSWER, LONGEST_INPUT, LONGEST_REPLY, LONGEST_SENTENCE = 110, 45, 70, 30
"""Maximum number of words of each kind of text."""
INPUT_SHARE = 0.35
"""Share of the instructions that have an input, about the same as in Alpaca."""

SYSTEM_MESSAGE = (
    "You are the help desk of a small company that writes software for laboratories. The people who write to you "
    "are chemists, biologists and engineers. They know their measurements well and programming only a little. "
    "Answer in plain English and in whole sentences. Say first what the function in question is for, then what it "
    "needs and what it gives back, and only then what can go wrong. Name units wherever a number has one. If there "
    "are several ways to do the same thing, recommend one of them and give the reason in a single sentence. Never "
    "invent a parameter that the function does not have; if you are not certain, say so and name the page of the "
    "manual where the answer stands. Do not apologise, do not repeat the question, and do not praise it. Keep an "
    "answer below one hundred words unless you are asked for more. Leave out greetings and signatures. If somebody "
    "asks for something that has nothing to do with the software, say politely that you cannot help with it and "
    "stop there."
)
"""System message of all chats, about 200 tokens."""


class Documentation(NamedTuple):
    """Documentation of one function or class.

    Attributes:
        part: name in `PARTS`.
        name: qualified name of the function.
        text: description, without directives and sections.
        parameters: description of the parameters; "" if there is none.
    """

    part: str
    name: str
    text: str
    parameters: str


def write_rows(kind: str, file: Path) -> None:
    """Write all rows of a kind in `KINDS` as JSON lines, always in the same order."""
    draw = random.Random(0)
    rows = [row for function in _documentation() if (row := KINDS[kind](function, draw)) is not None]
    draw.shuffle(rows)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _instruction(function: Documentation, draw: random.Random) -> dict[str, Any]:
    with_input = bool(function.parameters) and draw.random() < INPUT_SHARE
    question = draw.choice(QUESTIONS_WITH_INPUT if with_input else QUESTIONS)
    return {
        "instruction": question.format(name=function.name, part=function.part),
        "input": _first_words(function.parameters, LONGEST_INPUT) if with_input else "",
        "output": _first_words(function.text, LONGEST_ANSWER),
    }


def _sentence(function: Documentation, draw: random.Random) -> dict[str, Any] | None:
    """Return the first sentence and its label; None for one of the parts, since the classifier has two labels."""
    if function.part == "signals":
        return None
    return {"text": _first_words(function.text.split(". ")[0], LONGEST_SENTENCE), "label": function.part}


def _chat(function: Documentation, draw: random.Random) -> dict[str, Any]:
    question = draw.choice(QUESTIONS).format(name=function.name, part=function.part)
    answer = _first_words(function.text, LONGEST_REPLY)
    roles = {"system": SYSTEM_MESSAGE, "user": question, "assistant": answer}
    return {"messages": [{"role": role, "content": content} for role, content in roles.items()]}


KINDS = {"instructions": _instruction, "sentences": _sentence, "chats": _chat}
"""Function that makes a row from the documentation of a function, or returns None, by kind."""


def _documentation() -> Iterator[Documentation]:
    """Yield the documentation of public functions and classes with at least 15 words, without duplicate texts."""
    seen = set()
    for part, modules in PARTS.items():
        for path in modules:
            module: Any = importlib.import_module(path)
            for name in sorted(module.__all__):
                docstring = inspect.getdoc(getattr(module, name, None)) or ""
                head, *sections = re.split(r"\n(?=\w[\w ]*\n-{3,}\n)", docstring)
                text = " ".join(re.sub(r"\.\. .*?(?:\n\n|$)", "", head, flags=re.DOTALL).split())
                parameters = next((section for section in sections if section.startswith("Parameters\n")), "")
                if len(text.split()) >= 15 and text not in seen:
                    seen.add(text)
                    yield Documentation(part, f"{path}.{name}", text, " ".join(parameters.split()[2:]))


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])
