"""Named row formats of known tutorials, models and data sets (`data.format`). docs/data.md shows them."""

import re
from typing import NamedTuple

from peftly.data.messages import are_messages
from peftly.data.rows import Rows, quoted
from peftly.errors import DataError

__all__ = ["PRESETS", "Preset", "PresetMatch", "fits_preset", "match_preset"]


class Preset(NamedTuple):
    """A named row format.

    Attributes:
        template: template of the prompt, with the first of each field's names; None for conversations alone.
        names: names by which the rows may have a field of the template or the target, the preferred name first.
        target: field to learn, a key of `names`.
        chat_template: chat template for rows with conversations; None: the format is for no conversations.
    """

    template: str | None
    names: dict[str, tuple[str, ...]]
    target: str
    chat_template: str | None = None

    @property
    def fields(self) -> str:
        """Names of the fields that the format reads and learns, for messages."""
        shown = [f"{'|'.join(names)}" for key, names in self.names.items() if self.template and key != self.target]
        texts = f"{' + '.join(shown)} and learns {'|'.join(self.names[self.target])}" if shown else ""
        return " or ".join(filter(None, [texts, "conversations" if self.chat_template else ""]))


class PresetMatch(NamedTuple):
    """Settings of a named format for some rows.

    Attributes:
        template: template with the names of the rows' fields; None for conversations.
        target: field to learn.
        chat_template: chat template of conversations; None for other rows.
    """

    template: str | None
    target: str
    chat_template: str | None


_INSTRUCTIONS = {
    "instruction": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion"),
}
_WITH_SYSTEM = {"system": ("system",), **_INSTRUCTIONS}

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'user' %}{{ bos_token }}[INST] "
    "{{ system if loop.first else '' }}{{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_VICUNA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set turns = messages[1:] %}"
    f'{{% else %}}{{{{ "{_VICUNA_SYSTEM}" }}}}{{% set turns = messages %}}{{% endif %}}'
    "{% for message in turns %}{% if message['role'] == 'user' %}{{ ' ' if loop.first else '' }}"
    "USER: {{ message['content'] }}"
    "{% else %} ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)

PRESETS = {
    "alpaca": Preset(
        "Below is an instruction that describes a task[, paired with an input that provides further context{?input}]. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
        "[### Input:\n{input?}\n\n]### Response:\n",
        _INSTRUCTIONS,
        "output",
    ),
    "alpaca-human": Preset("Human: {instruction}[\n{input?}]\n\nAssistant: ", _INSTRUCTIONS, "output"),
    "belle": Preset("Human: {instruction}[\n{input?}]\n\nAssistant:", _INSTRUCTIONS, "output"),
    "chatml": Preset(None, {"messages": ("messages", "conversations")}, "messages", _CHATML),
    "firefly": Preset("<s>{input}</s>", {"input": ("input",), "target": ("target",)}, "target"),
    "llama-2": Preset(
        "[INST] [<<SYS>>\n{system?}\n<</SYS>>\n\n]{instruction}[\n{input?}] [/INST] ", _WITH_SYSTEM, "output", _LLAMA_2
    ),
    "twitter-complaints": Preset(
        "Tweet text : {text} Label : ",
        {"text": ("Tweet text", "text", "tweet"), "label": ("text_label", "Label", "label")},
        "label",
    ),
    "vicuna": Preset(
        f"{_VICUNA_SYSTEM} USER: {{instruction}}[\n{{input?}}] ASSISTANT: ", _INSTRUCTIONS, "output", _VICUNA
    ),
}
"""Named row formats by their names in `data.format`."""


def fits_preset(name: str, rows: Rows) -> bool:
    """Return whether rows have the fields of a named format; see `match_preset`."""
    try:
        match_preset(name, rows, None)
    except DataError:
        return False
    return True


def match_preset(name: str, rows: Rows, target: str | None) -> PresetMatch:
    """Return the settings of a named format for some rows.

    Args:
        name: name of the format, a key of `PRESETS`.
        rows: training rows.
        target: name of the field to learn; None: the one of the format.

    Raises:
        DataError: the rows lack a field of the format.
    """
    preset = PRESETS[name]
    conversations = [field for field in rows.fields if are_messages(rows.rows[0].get(field))]
    if preset.chat_template and (field := next((field for field in conversations if target in (None, field)), None)):
        return PresetMatch(None, field, preset.chat_template)
    found = {key: next((own for own in names if own in rows.fields), None) for key, names in preset.names.items()}
    learned = target or found.get(preset.target)
    needed = re.findall(r"\{(\w+)\}", preset.template or "")
    if preset.template is None or learned is None or any(found[key] is None for key in needed):
        raise DataError(
            f"{rows.name}: data.format {name} reads {preset.fields}; the rows have {quoted(rows.fields)}; rename the "
            "fields, or give a template and a target"
        )
    template = re.sub(
        r"\{(\??)(\w+)(\??)\}", lambda mark: f"{{{mark[1]}{found[mark[2]] or mark[2]}{mark[3]}}}", preset.template
    )
    return PresetMatch(template, learned, None)
