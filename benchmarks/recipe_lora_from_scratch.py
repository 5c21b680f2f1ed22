"""LoRA from scratch: the job on one digit with both implementations, and what each costs on a large layer."""

import time
from pathlib import Path
from typing import Any

import recipes

BASE = "a network of three linear layers"
BOUNDS = {
    "job.base: all digits": (0.9, None),
    "job.alone: all digits": (None, 0.6),
    "job.alone: 9": (0.99, None),
    "job.mixed: all digits": (0.89, None),
    "job.mixed: 9": (0.95, None),
    "job.alone: difference of the two versions": (None, 1e-6),
    "job.mixed: difference of the two versions": (None, 1e-6),
    "job.mixed: difference of the two versions, merged": (None, 1e-6),
    "layer.parametrize.saved_mib": (16, None),
    "layer.peftly.saved_mib": (None, 1),
}
WIDTH, TOKENS, RANK = 2048, 64, 8
REPEATS = 20


def measure(folder: Path) -> dict[str, Any]:
    """Run the example, and a training step of one large layer with both implementations."""
    script = recipes.example("lora_parametrize")
    return {"job": script.main(), "layer": layer_costs(script)}


def layer_costs(script: Any) -> dict[str, Any]:
    """Return CPU milliseconds of a forward and backward pass, and the MiB saved between the two, without the weight."""
    import torch
    from torch import nn

    import peftly

    costs = {}
    for name in ("parametrize", "peftly"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        weight = model[0].weight
        if name == "peftly":
            peftly.attach(model, peftly.LoRA(rank=RANK, alpha=16, target_modules=".*"))
        else:
            script.add_lora(model, RANK, 16)
        x = torch.randn(TOKENS, WIDTH, requires_grad=True)
        saved: dict[int, int] = {}

        def note(tensor: Any, saved: dict[int, int] = saved) -> Any:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model(x)
        saved.pop(weight.untyped_storage().data_ptr(), None)
        output.sum().backward()
        seconds = []
        for _ in range(REPEATS):
            start = time.process_time()
            model(x).sum().backward()
            seconds.append(time.process_time() - start)
        costs[name] = {"ms": 1000 * min(seconds), "saved_mib": sum(saved.values()) / 2**20}
    return costs


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the table of accuracies and the table of costs."""
    job, layer = content["result"]["job"], content["result"]["layer"]
    lines = ["| trained on | accuracy on all digits | accuracy on the 9 |", "|---|---|---|"]
    names = {
        "base": "all digits (the base)",
        "alone": "LoRA on the 9 alone",
        "mixed": "LoRA on the 9 and as many others",
    }
    lines += [
        f"| {text} | {job[f'{name}: all digits']:.1%} | {job[f'{name}: 9']:.1%} |" for name, text in names.items()
    ]
    lines += [
        "",
        f"Trained: {job['share of parameters trained']:.1%} of the parameters. 597 test images. " + differences(job),
    ]
    costs = [
        f"| one layer, {WIDTH} × {WIDTH}, rank {RANK}, {TOKENS} tokens | CPU milliseconds of a step | MiB saved for "
        "the backward pass, besides the weight |",
        "|---|---|---|",
    ]
    for name, text in {"parametrize": "`parametrize`", "peftly": "peftly"}.items():
        costs.append(f"| {text} | {layer[name]['ms']:.1f} | {layer[name]['saved_mib']:.1f} |")
    costs += [
        "",
        f"Measured in float32 with 1 thread of a CPU ({content['environment']['cpu']}); "
        f"the fastest of {REPEATS} steps.",
    ]
    return {"scratch-job": "\n".join(lines), "scratch-layer": "\n".join(costs)}


def differences(job: dict[str, float]) -> str:
    """Return the sentence on the differences between the two versions."""
    both = [value for name, value in job.items() if "difference" in name]
    return f"Relative difference of the outputs of the two versions: at most {max(both):.0e}."
