"""Run `examples/qlora_llama.yaml` over bases in 16, 8 and 4 bits with three seeds, merge one run, and update the docs.

In 4 bits, one more kind of run initialises LoRA from the quantisation error of the base.

    make tables

writes benchmarks/results/qlora.json and the tables in docs/qlora.md, which `make test` compares with the JSON.
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
OVERRIDES = {
    "none": ("quantization=none",),
    "int8": ("quantization=int8",),
    "nf4": ("quantization=nf4",),
    "nf4, init: qera": ("quantization=nf4", "method.init=qera"),
}
SEEDS = (0, 1, 2)
INTO = ("trained", "original")


def measure() -> dict[str, Any]:
    """Train all runs, merge one, and return the figures of the tables."""
    from peftly.utils.environment import automatic_dtype, environment

    runs, merged = [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind in OVERRIDES:
            for seed in SEEDS:
                out = Path(folder) / f"{kind}-{seed}"
                runs.append({"kind": kind, "seed": seed, **train(kind, seed, out)})
                print(runs[-1], flush=True)
        for into in INTO:
            merged.append({"into": into, **merge(Path(folder) / f"nf4-{SEEDS[0]}", into, Path(folder) / into)})
            print(merged[-1], flush=True)
    return {"environment": environment(), "dtype": automatic_dtype(), "runs": runs, "merged": merged}


def train(kind: str, seed: int, out: Path) -> dict[str, Any]:
    """Train the example with the overrides of a kind and with a seed, and return the scores."""
    from peftly.runs.config import one_run
    from peftly.runs.config_file import load_config
    from peftly.runs.run import run

    data = {part: ROOT / "src/peftly/sample_data/complaints" / f"{part}.jsonl" for part in ("train", "validation")}
    overrides = [f"data.{part}={file}" for part, file in data.items()]
    overrides += [*OVERRIDES[kind], f"train.seed={seed}", f"out={out}"]
    config = one_run(load_config(EXAMPLE, overrides))
    result = run(config)
    assert result.evaluation is not None
    scores = {"loss": result.evaluation.loss, "accuracy": result.evaluation.accuracy}
    return {**scores, "seconds": result.training.seconds, "base_bytes": base_bytes(config.base, config.quantization)}


def base_bytes(spec: str, quantization: Any) -> int:
    """Return the bytes of a base's parameters in memory, including the scales of quantised parameters."""
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
    """Merge the adapter of a run, and return the scores of the merged model and the differences of its logits."""
    from peftly import load_base, open_run, save_merged
    from peftly.evaluation.evaluate import evaluate
    from peftly.runs.held_out import held_out_split

    parity = save_merged(run, out, into=into)
    held_out = held_out_split(open_run(str(run)), None)
    model, tokenizer = load_base(str(out))
    scores = evaluate(model, tokenizer, held_out.split, held_out.row_format)
    from_quantized = parity.quantized[0] if parity.quantized else None
    differences = {"relative": parity.relative, "rounding": parity.rounding, "from_quantized": from_quantized}
    return {"loss": scores.loss, "accuracy": scores.accuracy, **differences}


def tables(results: dict[str, Any]) -> str:
    """Return the tables of the docs: means over the seeds, ranges in brackets."""
    return "\n".join([*_cost_table(results), "", *_merge_table(results), ""])


def _cost_table(results: dict[str, Any]) -> list[str]:
    lines = ["| base | MB of the base | validation loss | accuracy | training seconds |", "|---|---|---|---|---|"]
    for kind in OVERRIDES:
        runs = [run for run in results["runs"] if run["kind"] == kind]
        name = f"{results['dtype']}, no quantisation" if kind == "none" else kind
        cells = [name, f"{runs[0]['base_bytes'] / 1e6:.0f}"]
        cells += [spread([run["loss"] for run in runs], ".3f"), spread([100 * run["accuracy"] for run in runs], ".0f")]
        lines.append("| " + " | ".join([*cells, f"{statistics.median(run['seconds'] for run in runs):.0f}"]) + " |")
    machine = results["environment"]
    seeds = ", ".join(map(str, SEEDS))
    note = f"Seeds {seeds}; 100 validation examples, on {machine['cpu_cores']} cores ({machine['cpu']})."
    return [*lines, "", note]


def _merge_table(results: dict[str, Any]) -> list[str]:
    unmerged = next(run for run in results["runs"] if (run["kind"], run["seed"]) == ("nf4", SEEDS[0]))
    trained, original = results["merged"]
    scores_by_name = {
        "adapter over the NF4 base": unmerged,
        "merged into the dequantised base": trained,
        "merged into the original": original,
    }
    lines = ["| the NF4 run of seed 0 | validation loss | accuracy |", "|---|---|---|"]
    for name, scores in scores_by_name.items():
        lines.append(f"| {name} | {scores['loss']:.3f} | {100 * scores['accuracy']:.0f} |")
    differences = f"Relative differences of logits: {trained['relative']:.1e} between the first merged model and the "
    differences += (
        f"adapted model (rounding alone: {trained['rounding']:.1e}), {original['from_quantized']:.1e} between "
    )
    differences += "the second merged model and the adapter over NF4."
    return [*lines, "", differences]


def spread(values: list[float], digits: str) -> str:
    """Return the mean, with the range in brackets if the values differ."""
    low, mean, high = (f"{value:{digits}}" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def with_tables(page: str, results: dict[str, Any]) -> str:
    """Return the page with new tables."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return head + BEGIN + "\n" + tables(results) + "\n" + END + tail


def main() -> None:
    """Measure all runs, and write the JSON and the page."""
    results = measure()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
