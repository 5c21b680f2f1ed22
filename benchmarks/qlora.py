"""Run `examples/qlora_llama.yaml` over bases in 16, 8 and 4 bits with three seeds, merge one, and fill in the docs.

In 4 bits also with LoRA that starts from what quantising has cost.

    make tables

writes benchmarks/results/qlora.json and the tables in docs/qlora.md, which `make test` compares with it.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "qlora.json"
PAGE = ROOT / "docs" / "qlora.md"
EXAMPLE = ROOT / "examples" / "qlora_llama.yaml"
BEGIN, END = "<!-- table: qlora -->\n", "<!-- end of table -->\n"
KINDS = {
    "none": ("quantization=none",),
    "int8": ("quantization=int8",),
    "nf4": ("quantization=nf4",),
    "nf4, init: qera": ("quantization=nf4", "method.init=qera"),
}
SEEDS = (0, 1, 2)
INTO = ("trained", "original")


def measure() -> dict[str, Any]:
    """Run and merge everything, and return what the tables need."""
    from peftly.utils.environment import automatic_dtype, environment

    runs, merged = [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for seed in SEEDS:
                out = Path(folder) / f"{kind}-{seed}"
                runs.append({"kind": kind, "seed": seed, **trained(kind, seed, out)})
                print(runs[-1], flush=True)
        for into in INTO:
            merged.append({"into": into, **merge(Path(folder) / f"nf4-{SEEDS[0]}", into, Path(folder) / into)})
            print(merged[-1], flush=True)
    return {"environment": environment(), "dtype": automatic_dtype(), "runs": runs, "merged": merged}


def trained(kind: str, seed: int, out: Path) -> dict[str, Any]:
    """Run the example with another quantisation, and return its scores."""
    from peftly.runs.config import one_run
    from peftly.runs.config_file import load_config
    from peftly.runs.run import run

    data = {part: ROOT / "src/peftly/sample_data/complaints" / f"{part}.jsonl" for part in ("train", "validation")}
    overrides = [f"data.{part}={file}" for part, file in data.items()]
    overrides += [*KINDS[kind], f"train.seed={seed}", f"out={out}"]
    config = one_run(load_config(EXAMPLE, overrides))
    result = run(config)
    assert result.evaluation is not None
    scores = {"loss": result.evaluation.loss, "accuracy": result.evaluation.accuracy}
    return {**scores, "seconds": result.training.seconds, "base_bytes": base_bytes(config.base, config.quantization)}


def base_bytes(spec: str, quantization: Any) -> int:
    """Return how many bytes the parameters of a base have in memory, with the scales of quantised ones."""
    from peftly import load_base

    model = load_base(spec, quantization=quantization).model
    tensors = {}
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        parts = [parameter.data, getattr(parameter, "SCB", None)]
        if state is not None:
            parts += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        tensors.update({part.data_ptr(): part.nbytes for part in parts if part is not None})
    return sum(tensors.values())


def merge(run: Path, into: Any, out: Path) -> dict[str, Any]:
    """Merge a run's adapter, and return what the comparison says, and the scores of what plain transformers opens."""
    from peftly import load_base, save_merged
    from peftly.evaluation.evaluate import evaluate
    from peftly.runs.folder import open_run
    from peftly.runs.held_out import held_out_rows

    parity = save_merged(run, out, into=into)
    rows = held_out_rows(open_run(str(run)), None)
    model, tokenizer = load_base(str(out))
    found = evaluate(model, tokenizer, rows.split, rows.shape)
    away = parity.quantized[0] if parity.quantized else None
    compared = {"relative": parity.relative, "rounding": parity.rounding, "from_quantized": away}
    return {"loss": found.loss, "accuracy": found.accuracy, **compared}


def tables(results: dict[str, Any]) -> str:
    """Return the docs' tables: means over the seeds, and the range in brackets."""
    names = {"none": f"{results['dtype']}, no quantisation"}
    lines = ["| base | MB of the base | validation loss | accuracy | training seconds |", "|---|---|---|---|---|"]
    for kind in KINDS:
        own = [run for run in results["runs"] if run["kind"] == kind]
        cells = [names.get(kind, kind), f"{own[0]['base_bytes'] / 1e6:.0f}"]
        cells += [spread([run["loss"] for run in own], ".3f"), spread([100 * run["accuracy"] for run in own], ".0f")]
        lines.append("| " + " | ".join([*cells, f"{statistics.median(run['seconds'] for run in own):.0f}"]) + " |")
    machine = results["environment"]
    note = (
        f"Seeds {', '.join(map(str, SEEDS))}; 100 validation rows, on {machine['cpu_cores']} cores ({machine['cpu']})."
    )
    lines += ["", note, "", "| the NF4 run of seed 0 | validation loss | accuracy |", "|---|---|---|"]
    unmerged = next(run for run in results["runs"] if (run["kind"], run["seed"]) == ("nf4", SEEDS[0]))
    words = {"trained": "merged into the unpacked base", "original": "merged into the original"}
    for name, row in [
        ("adapter over the NF4 base", unmerged),
        *((words[row["into"]], row) for row in results["merged"]),
    ]:
        lines.append(f"| {name} | {row['loss']:.3f} | {100 * row['accuracy']:.0f} |")
    into, original = results["merged"]
    lines += [
        "",
        f"Logits of the first differ from the adapted model's by {into['relative']:.1e} (rounding alone: "
        f"{into['rounding']:.1e}), relative; those of the second by {original['from_quantized']:.1e} from the adapter "
        "over NF4.",
        "",
    ]
    return "\n".join(lines)


def spread(values: list[float], digits: str) -> str:
    """Return the mean, and the range in brackets."""
    low, mean, high = (f"{value:{digits}}" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def with_tables(page: str, results: dict[str, Any]) -> str:
    """Return the page with its tables made anew."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return head + BEGIN + "\n" + tables(results) + "\n" + END + tail


def main() -> None:
    """Measure, and write the JSON and the page."""
    results = measure()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
