"""The model card of an adapter."""

import json
from collections.abc import Sequence

from peftly.methods import MethodConfig

__all__ = ["adapter_card"]


def adapter_card(base: str | None, config: MethodConfig, made_of: Sequence[str] = ()) -> str:
    """Return the text of an adapter's model card.

    Args:
        base: name of the base; None where it is not known.
        config: settings of the method.
        made_of: lines about the adapters that a combined adapter was made of.
    """
    settings = "\n".join(f"- {key}: {value}" for key, value in config.model_dump(mode="json").items())
    parts = "".join(f"\n- {line}" for line in made_of)
    front_matter = f"base_model: {json.dumps(base)}\n" if base else ""
    return (
        f"---\n{front_matter}library_name: peft\ntags:\n- peftly\n- {config.name}\n---\n\n"
        f"# A {config.name} adapter{f' for {base}' if base else ''}\n\n{settings}\n\n"
        f"{f'It is made of:{chr(10)}{parts}{chr(10)}{chr(10)}' if parts else ''}"
        "Load it with `peftly.load(folder)`, or with PEFT's `PeftModel.from_pretrained(base, folder)`.\n"
    )
