"""The model card of an adapter."""

import json
from collections.abc import Sequence

from peftly.methods import METHODS, MethodConfig
from peftly.models import OutputKind, Pooling

__all__ = ["adapter_card"]


def adapter_card(
    base: str | None,
    config: MethodConfig,
    made_of: Sequence[str] = (),
    labels: Sequence[str] = (),
    pooling: Pooling | None = None,
    outputs: OutputKind = "class",
    peft_limit: str | None = None,
    tags: Sequence[str] = (),
    pipeline: str | None = None,
) -> str:
    """Return the text of an adapter's model card.

    Args:
        base: name of the base; None where it is not known.
        config: settings of the method.
        made_of: lines about the adapters that a combined adapter was made of.
        labels: labels of a classifier, in the order of its outputs.
        pooling: pooling in front of the head of a sequence classifier; None: the class of transformers has its own.
        outputs: meaning of the outputs of a classifier.
        peft_limit: why PEFT computes other outputs with the adapter; None: it does not.
        tags: more tags, such as those of the base.
        pipeline: name of the Hub for the use of the model, such as "text-generation".
    """
    settings = "\n".join(f"- {key}: {value}" for key, value in config.model_dump(mode="json").items())
    parts = "".join(f"\n- {line}" for line in made_of)
    names = "".join(f"\n{number}. `{json.dumps(label, ensure_ascii=False)}`" for number, label in enumerate(labels))
    by_number = f"{_OUTPUTS[outputs]}, by the number of the output (`id2label`):\n{names}\n\n" if labels else ""
    front_matter = f"base_model: {json.dumps(base)}\n" if base else ""
    front_matter += f"pipeline_tag: {pipeline}\n" if pipeline else ""
    of_peft = METHODS[config.name].adapter.peft_types[0].lower()  # by which the Hub finds adapters of a kind
    all_tags = dict.fromkeys(["peftly", config.name, *(() if of_peft.startswith("peftly") else (of_peft,)), *tags])
    listed = "".join(f"\n- {json.dumps(tag, ensure_ascii=False) if ':' in tag else tag}" for tag in all_tags)
    return (
        f"---\n{front_matter}library_name: peft\ntags:{listed}\n---\n\n"
        f"# A {config.name} adapter{f' for {base}' if base else ''}\n\n{settings}\n\n"
        f"{f'It is made of:{chr(10)}{parts}{chr(10)}{chr(10)}' if parts else ''}"
        f"{by_number}"
        f"{_loading(pooling, peft_limit)}\n"
    )


_OUTPUTS: dict[OutputKind, str] = {
    "class": "Labels",
    "labels": "Labels, of which any number may be right (a sigmoid for each)",
    "numbers": "Numbers that it predicts",
}
"""Names of the outputs of a classifier, by their meaning."""


def _loading(pooling: Pooling | None, peft_limit: str | None) -> str:
    if peft_limit is not None:
        return f"Load it with `peftly.load(folder)`, and not with PEFT: {peft_limit}."
    if pooling is None:
        return "Load it with `peftly.load(folder)`, or with PEFT's `PeftModel.from_pretrained(base, folder)`."
    states = "mean of the token states" if pooling == "mean" else "state of the first token"
    return (
        f"Load it with `peftly.load(folder)`. Its head is one linear layer on the {states}, which the class of\n"
        "transformers does not have. `peftly export --to peft` writes an adapter for PEFT with the head beside it;\n"
        "`head: transformers` trains an adapter that PEFT loads as it is."
    )
