"""Training in two processes gives the same weights as in one, on every task.

Run as a script, this file is one of the processes: it trains, and saves its results.
"""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from launches import ended, launch
from task_jobs import ready, trained
from torch.distributed.tensor import DTensor
from training_jobs import IdTokenizer, data_of, lora_model, run, weights
from upper_adapters import upper_lora

from peftly.errors import Stopped
from peftly.evaluation import evaluate
from peftly.training.callbacks import Callback
from peftly.training.config import TrainConfig
from peftly.training.job import AdapterJob
from peftly.training.processes import leave_processes
from peftly.training.train import train

TASKS = {"sequence_classification": "roberta", "token_classification": "bert", "seq2seq_lm": "t5"}


def results(bases, folder, *, processes=1, out=None):
    """Train once on every task, with the same number of examples per step for any number of processes.

    In the last step of an epoch of the first task one of two processes has no example; in other steps the two have
    different numbers of micro-batches.

    Returns:
        All losses and the weights, by task.
    """
    settings = {"micro_batch_tokens": 16, "optimizer": "sgd"}
    model, result = run(lora_model(torch.float64), data_of(17), out, batch_size=8 // processes, **settings)
    found = {"causal_lm": ([record.loss for record in result.history], weights(model))}
    found["sharded"] = sharded(processes, out and out.parent / "sharded", settings)
    for (task, architecture), base in zip(TASKS.items(), bases, strict=True):
        model, tokenizer, data = ready(task, architecture, lambda _, base=base: base, folder)
        result = trained(model, tokenizer, data, batch_size=16 // processes, **settings)
        found[task] = ([record.loss for record in result.history], weights(model))
    return found


def sharded(processes, out, settings):
    """Train and evaluate over a base that is sharded if there are several processes; see `results`."""
    model, data, seen = lora_model(torch.float64), data_of(17), []

    class Watch(Callback):
        def on_step(self, record):
            seen.append([isinstance(parameter, DTensor) for parameter in model.parameters()])

    fsdp = processes > 1
    _, result = run(model, data, out, callbacks=[Watch()], batch_size=8 // processes, fsdp=fsdp, **settings)
    trained_ones = [parameter.requires_grad for parameter in model.parameters()]
    if processes > 1 and os.environ["RANK"] == "0":
        assert len(seen) == result.steps
        assert all(kinds == [not is_trained for is_trained in trained_ones] for kinds in seen)
    # The main process has saved the adapter alone, and all of them evaluate.
    loss = evaluate(model, IdTokenizer(), data.validation, data.row_format).loss
    return [*(record.loss for record in result.history), loss], weights(model)


def whole_and_resumed(out, **changes):
    """Train over frozen layers, once without a stop and once killed in the third epoch; the last step is short.

    Returns:
        The weights of both.
    """

    def make():
        return upper_lora("llama").float()

    after_step = AdapterJob.after_step

    def killed_after_step(self):
        if self.step == 7:
            raise RuntimeError("killed")
        after_step(self)

    data = data_of(17)
    settings = {"micro_batch_tokens": 16, "batch_size": 3, "epochs": 3, "checkpoint_steps": 1, "learning_rate": 1e-2}
    settings |= changes
    whole, _ = run(make(), data, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterJob, "after_step", killed_after_step)
        with pytest.raises(RuntimeError, match="killed"):
            run(make(), data, out, **settings)
    resumed = make()
    train(resumed, data, TrainConfig(**settings), tokenizer=IdTokenizer(), out=out, resume=True)
    return weights(whole), weights(resumed)


def whole_and_stopped(out):
    """Train once without a stop, and once with a signal to the second process after three steps; see `lora_model`.

    Returns:
        The weights of both.
    """

    class Send(Callback):
        def on_step(self, record):
            if record.step == 3:
                os.kill(int((out.parent / "pid").read_text()), signal.SIGTERM)

    data, settings = data_of(17), {"batch_size": 3, "epochs": 3}
    whole, _ = run(lora_model(), data, **settings)
    if os.environ["RANK"] == "1":
        (out.parent / "pid").write_text(str(os.getpid()))
    with pytest.raises(Stopped, match="stopped by SIGTERM; stopped at step"):
        run(lora_model(), data, out, callbacks=[Send()], **settings)
    resumed = lora_model()
    train(resumed, data, TrainConfig(learning_rate=1e-2, **settings), tokenizer=IdTokenizer(), out=out, resume=True)
    return weights(whole), weights(resumed)


@pytest.mark.soak
def test_two_processes_give_the_same_weights_as_one(task_base, tmp_path):
    bases = [task_base(architecture) for architecture in TASKS.values()]
    processes = launch([sys.executable, __file__, tmp_path, *bases], PYTHONPATH=os.pathsep.join(sys.path))
    for code, _, errors in ended(processes):
        assert code == 0, errors[-2000:]
    alone = results(bases, tmp_path)
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
    for rank in ("0", "1"):
        found = torch.load(tmp_path / rank / "results.pt")
        for task, (losses, tensors) in alone.items():
            assert found[task][0] == pytest.approx(losses, rel=1e-8), task
            assert found[task][1].keys() == tensors.keys()
            for name, tensor in tensors.items():
                torch.testing.assert_close(found[task][1][name], tensor, rtol=1e-7, atol=1e-9)
        for file in ("resumed.pt", "resumed-sharded.pt", "stopped.pt"):
            whole, resumed = torch.load(tmp_path / rank / file)
            assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items()), file


if __name__ == "__main__":
    gc.freeze()  # as conftest.py does: accelerate collects garbage at the end of each training
    folder, *bases = sys.argv[1:]
    own = Path(folder) / os.environ["RANK"]
    own.mkdir()
    torch.save(results(bases, own, processes=2, out=Path(folder) / "run"), own / "results.pt")
    torch.save(whole_and_resumed(Path(folder) / "resumed"), own / "resumed.pt")
    torch.save(whole_and_resumed(Path(folder) / "resumed-sharded", fsdp=True), own / "resumed-sharded.pt")
    torch.save(whole_and_stopped(Path(folder) / "stopped"), own / "stopped.pt")
    leave_processes()
