"""Rows of the shapes that the speed benchmark needs, made from what is installed: the lengths matter, not the meaning.

Instructions with an optional input and an answer, one-sentence texts with a label, and chats that share a system
message. Their words are the documentation strings of SciPy and scikit-learn, whose versions `constraints.txt` pins.
Nothing of them is in this repository.
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
"""Words that a text is cut to."""
INPUT_SHARE = 0.35
"""Part of the instructions that has an input, as about that of Alpaca's."""

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
"""What all chats begin with: about 200 tokens."""


class Documented(NamedTuple):
    """A function as its documentation has it."""

    part: str
    name: str
    text: str
    parameters: str


def write_rows(kind: str, file: Path) -> None:
    """Write all rows of a kind in `KINDS` as JSON lines, in an order that is always the same."""
    draw = random.Random(0)
    rows = [row for one in _documented() if (row := KINDS[kind](one, draw)) is not None]
    draw.shuffle(rows)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _instruction(one: Documented, draw: random.Random) -> dict[str, Any]:
    with_input = bool(one.parameters) and draw.random() < INPUT_SHARE
    question = draw.choice(QUESTIONS_WITH_INPUT if with_input else QUESTIONS)
    return {
        "instruction": question.format(name=one.name, part=one.part),
        "input": _cut(one.parameters, LONGEST_INPUT) if with_input else "",
        "output": _cut(one.text, LONGEST_ANSWER),
    }


def _sentence(one: Documented, draw: random.Random) -> dict[str, Any] | None:
    """Return the first sentence, of two of the parts only: a review is good or bad."""
    if one.part == "signals":
        return None
    return {"text": _cut(one.text.split(". ")[0], LONGEST_SENTENCE), "label": one.part}


def _chat(one: Documented, draw: random.Random) -> dict[str, Any]:
    question = draw.choice(QUESTIONS).format(name=one.name, part=one.part)
    answer = _cut(one.text, LONGEST_REPLY)
    roles = {"system": SYSTEM_MESSAGE, "user": question, "assistant": answer}
    return {"messages": [{"role": role, "content": content} for role, content in roles.items()]}


KINDS = {"instructions": _instruction, "sentences": _sentence, "chats": _chat}
"""By name, what makes a row of a documented function, or none."""


def _documented() -> Iterator[Documented]:
    """Yield every public function and class of the parts that says a few words about itself, each text once."""
    seen = set()
    for part, modules in PARTS.items():
        for path in modules:
            module: Any = importlib.import_module(path)
            for name in sorted(module.__all__):
                said = inspect.getdoc(getattr(module, name, None)) or ""
                head, *sections = re.split(r"\n(?=\w[\w ]*\n-{3,}\n)", said)
                text = " ".join(re.sub(r"\.\. .*?(?:\n\n|$)", "", head, flags=re.DOTALL).split())
                parameters = next((section for section in sections if section.startswith("Parameters\n")), "")
                if len(text.split()) >= 15 and text not in seen:
                    seen.add(text)
                    yield Documented(part, f"{path}.{name}", text, " ".join(parameters.split()[2:]))


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])
