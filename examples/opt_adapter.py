"""A published LoRA adapter of OPT: open it, compare a text with and without it, merge it, write it for PEFT.

Run it with `python examples/opt_adapter.py`, which fetches the adapter (6 MB) and the base (660 MB) from the Hub. For
another adapter change ADAPTER and BASE. No code in pickled weights is run.
"""

from pathlib import Path

from huggingface_hub import list_repo_files

import peftly

ADAPTER = "ybelkada/opt-350m-lora"
BASE = "facebook/opt-350m"  # its weights are a pickle, which `allow_pickle` opens by torch's weights_only


def in_safetensors(adapter: str, folder: str | Path) -> str | Path:
    """Return an adapter whose weights are in safetensors: itself, or a converted copy in `folder`."""
    local = Path(adapter)
    names = [file.name for file in local.iterdir()] if local.is_dir() else list_repo_files(adapter)
    return adapter if "adapter_model.safetensors" in names else peftly.convert(adapter, folder).folder


def main(folder: str = "runs/opt", text: str = "Two things are infinite:", new_tokens: int = 24) -> dict[str, str]:
    """Return the continuation of a text by the base, with the adapter, and after the adapter is merged."""
    model, tokenizer = peftly.load_base(BASE, allow_pickle=True, dtype="float32")

    def written() -> str:
        return peftly.generate(model, tokenizer, text, max_new_tokens=new_tokens)[0]

    texts = {"base": written()}
    peftly.load_adapter(model, in_safetensors(ADAPTER, f"{folder}/adapter"))
    texts["with the adapter"] = written()
    peftly.save_adapter(model, f"{folder}/peft")  # safetensors, which PEFT opens too
    peftly.merge(model)
    texts["merged"] = written()
    model.save_pretrained(f"{folder}/merged")
    tokenizer.save_pretrained(f"{folder}/merged")
    return texts


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value}")
