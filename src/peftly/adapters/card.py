"""The model card of an adapter."""

import json
from collections.abc import Sequence

from peftly.methods import MethodConfig

__all__ = ["adapter_card"]


def adapter_card(
    base: str | None, config: MethodConfig, made_of: Sequence[str] = (), labels: Sequence[str] = ()
) -> str:
    """Return the text of an adapter's model card.

    Args:
        base: name of the base; None where it is not known.
        config: settings of the method.
        made_of: lines about the adapters that a combined adapter was made of.
        labels: labels of a classifier, in the order of its outputs.
    """
    settings = "\n".join(f"- {key}: {value}" for key, value in config.model_dump(mode="json").items())
    parts = "".join(f"\n- {line}" for line in made_of)
    outputs = "".join(f"\n{number}. `{json.dumps(label, ensure_ascii=False)}`" for number, label in enumerate(labels))
    front_matter = f"base_model: {json.dumps(base)}\n" if base else ""
    return (
        f"---\n{front_matter}library_name: peft\ntags:\n- peftly\n- {config.name}\n---\n\n"
        f"# A {config.name} adapter{f' for {base}' if base else ''}\n\n{settings}\n\n"
        f"{f'It is made of:{chr(10)}{parts}{chr(10)}{chr(10)}' if parts else ''}"
        f"{f'Labels, by the number of the output (`id2label`):{chr(10)}{outputs}{chr(10)}{chr(10)}' if labels else ''}"
        "Load it with `peftly.load(folder)`, or with PEFT's `PeftModel.from_pretrained(base, folder)`.\n"
    )
