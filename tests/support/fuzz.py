"""Random hostile inputs run through peftly: only a result or a PeftlyError comes out."""

import json
from collections import Counter
from pathlib import Path
from random import Random

from hostile import DATA_FILES, chat_template, yaml_text

from peftly import load_data
from peftly.data import Example, encode, prompt_ids
from peftly.errors import PeftlyError
from peftly.runs.config_file import dump_config, load_config

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"})


def run(kind: str, seed: int, tokenizer, folder: Path) -> str:
    """Run one input; return "ok", or the first words of its PeftlyError.

    Args:
        kind: "yaml", "template", or the ending of a data file.
        seed: seed of the input.
        tokenizer: tokenizer, which gets the chat template.
        folder: folder for files.
    """
    random = Random(f"{kind} {seed}")
    try:
        if kind == "yaml":
            _configuration(folder / "run.yaml", yaml_text(random))
        elif kind == "template":
            tokenizer.chat_template = chat_template(random)
            prompt_ids(MESSAGES[:1], tokenizer)
            encode(Example(messages=MESSAGES), tokenizer, 64)
        else:
            file = folder / f"rows.{kind}"
            file.write_bytes(DATA_FILES[kind](random))
            tokenizer.chat_template = TEMPLATE
            task = random.choice(["causal_lm"] * 5 + ["token_classification"])
            data = load_data(str(file), tokenizer, task=task)
            json.dumps(data.report.to_dict())
    except PeftlyError as error:
        return type(error).__name__
    return "ok"


def _configuration(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    config = load_config(file)
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


def fuzz(kind: str, count: int, tokenizer, folder: Path, first: int = 0) -> Counter[str]:
    """Run `count` inputs; return how many of them ended in which way.

    Raises:
        AssertionError: an input ended in another way; the message has its seed.
    """
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + count):
        try:
            outcomes[run(kind, seed, tokenizer, folder)] += 1
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}: {type(error).__name__}: {error}") from error
    return outcomes


KINDS = ("yaml", "template", *DATA_FILES)
