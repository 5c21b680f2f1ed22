"""Estimated peak memory of training on well-known bases, method by method, in 16 and in 4 bits.

    python benchmarks/memory_of_bases.py

writes benchmarks/results/memory_of_bases.json and the table in README.md, which `make test` compares with the JSON. The
estimates come from the configurations of the bases, which are written out here: no weight is read. Their errors, where
the peak was measured too, are in docs/memory.md.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import transformers as tf

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "memory_of_bases.json"
PAGE = ROOT / "README.md"
TABLE = re.compile(r"(<!-- table: memory of bases -->\n).*?(<!-- end of table -->)", re.DOTALL)

BASES: dict[str, tf.PretrainedConfig | str] = {
    "smollm2-135m": "smollm2-135m",
    "bloomz-560m": tf.BloomConfig(
        architectures=["BloomForCausalLM"], vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16, dtype="float16"
    ),
    "bloom-1b4-zh": tf.BloomConfig(
        architectures=["BloomForCausalLM"], vocab_size=46145, hidden_size=2048, n_layer=24, n_head=16, dtype="float16"
    ),
    "Llama-2-7B": tf.LlamaConfig(architectures=["LlamaForCausalLM"], max_position_embeddings=4096, dtype="float16"),
}
METHODS = ("prompt_tuning", "prefix_tuning", "lora", "dora", "full")
BITS = {16: None, 4: "nf4"}
TOKENS = 512
PROCESS = 500_000_000
"""Memory of a process with the libraries, before a base is opened."""


def estimates(folder: Path) -> list[dict[str, Any]]:
    """Return the estimate of each method for each base."""
    from peftly.methods import METHODS as KNOWN
    from peftly.runs import estimate_memory
    from peftly.training import TrainConfig

    found = []
    for name, config in BASES.items():
        base = name
        if not isinstance(config, str):
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(config.to_dict(), default=str), encoding="utf-8")
            base = str(folder / name)
        for bits, quantization in BITS.items():
            for method in METHODS:
                if method == "full" and quantization:
                    continue
                estimate = estimate_memory(
                    base,
                    KNOWN[method].config(),
                    TrainConfig(batch_size=1, evaluation_batch_size=1),
                    data=TOKENS,
                    dtype="bfloat16",
                    device="cpu",
                    quantization=quantization,
                    process_bytes=PROCESS,
                    available_bytes=10**12,
                )
                result = {"base": name, "bits": bits, "method": method, "bytes": estimate.steps_bytes}
                found.append(result | {"parameters": estimate.trained_parameters})
                print(found[-1])
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Return the table of the page: a line for each base and number of bits, a column for each method."""
    memory = {(one["base"], one["bits"], one["method"]): one["bytes"] for one in results}
    lines = [
        "| base | bits | " + " | ".join(f"`{method}`" for method in METHODS) + " |",
        "|---" * (len(METHODS) + 2) + "|",
    ]
    for base in BASES:
        for bits in BITS:
            cells = [memory.get((base, bits, method)) for method in METHODS]
            texts = ["" if cell is None else f"{cell / 1e9:.1f}" for cell in cells]
            lines.append(f"| {base} | {bits} | " + " | ".join(texts) + " |")
    return "\n" + "\n".join(lines) + "\n\n"


def with_table(page: str, results: list[dict[str, Any]]) -> str:
    """Return a page with the table of the results."""
    return TABLE.sub(lambda match: match[1] + table(results) + match[2], page)


def read() -> list[dict[str, Any]]:
    """Return the stored results."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def main() -> None:
    """Estimate, and write results and page."""
    with tempfile.TemporaryDirectory() as folder:
        results = estimates(Path(folder))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
