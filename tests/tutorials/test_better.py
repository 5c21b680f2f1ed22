"""Where the scripts of the tutorials go wrong with PEFT, and are right with peftly."""

import pytest
import torch
from tutorial_scripts import ScriptRun, run_script, script

LLAMA = {
    '"bloom-1b4-zh"': '"chinese-llama"',
    '"bloomz-560m"': '"english-llama"',
    '"bert-base-uncased"': '"english-llama"',
}
"""Bloom's positions leave padding out; those of Llama count it behind the prompts of PEFT."""


def on_llama(name: str, changes: dict[str, str] | None = None) -> str:
    """Return a script with a Llama as its base."""
    source = edited(name, changes)
    for before, after in LLAMA.items():
        source = source.replace(before, after)
    return source


def edited(name: str, changes: dict[str, str] | None = None) -> str:
    """Return a script with other settings."""
    source = script(name)
    for before, after in (changes or {}).items():
        assert before in source
        source = source.replace(before, after)
    return source


def logged(run: ScriptRun, key: str = "loss", trainer: str = "trainer") -> list[float]:
    return [entry[key] for entry in run.variables[trainer].state.log_history if key in entry]


def pair(sources: tuple[str, str], workspace) -> dict[str, list[ScriptRun]]:
    """Run two scripts with PEFT and with peftly, all four from the same initial adapter."""
    runs = {"peft": [run_script(sources[0], "peft", workspace())]}
    start = runs["peft"][0].initial
    runs["peft"].append(run_script(sources[1], "peft", workspace(), start=start))
    runs["peftly"] = [run_script(source, "peftly", workspace(), start=start) for source in sources]
    return runs


@pytest.mark.parametrize("method", ["p_tuning", "prefix"])
def test_one_batch_of_four_trains_as_four_batches_of_one(method, workspace):
    name = f"chinese_alpaca:{method}"
    four = {"per_device_train_batch_size=1": "per_device_train_batch_size=4", "steps=4": "steps=1"}
    runs = pair((on_llama(name), on_llama(name, four)), workspace)
    one, other = map(logged, runs["peftly"])
    assert other == pytest.approx(one, rel=1e-5)
    assert logged(runs["peft"][0]) == pytest.approx(one, rel=1e-5)
    assert logged(runs["peft"][1]) != pytest.approx(one, rel=1e-3)
    assert batch_error(runs["peftly"][0]) < 1e-5
    if method != "prefix":  # PEFT generates from a prefix with other positions than it has trained with
        assert batch_error(runs["peft"][0]) > 1e-3


def batch_error(run: ScriptRun) -> float:
    """Return the largest relative difference of the next token's logits between a text alone and in a batch."""
    model, tokenizer = run.variables["chatbot"], run.variables["tokenizer"]
    questions = ["Human: 你好！\n\nAssistant: ", "Human: 为什么天空是蓝色的？请用一句话回答。\n\nAssistant: "]
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
    together = model.generate(**tokenizer(questions, return_tensors="pt", padding=True), **options).logits[0]
    alone = [model.generate(**tokenizer(text, return_tensors="pt"), **options).logits[0][0] for text in questions]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(together, alone, strict=True))


def test_the_loss_does_not_depend_on_the_length_that_tweets_are_padded_to(workspace):
    sources = [on_llama("twitter_complaints", {"MAX_LENGTH = 64": f"MAX_LENGTH = {length}"}) for length in (64, 80)]
    runs = pair(tuple(sources), workspace)
    short, long = (run.variables["losses"] for run in runs["peftly"])
    assert long == pytest.approx(short, rel=1e-5)
    short, long = (run.variables["losses"] for run in runs["peft"])
    assert long != pytest.approx(short, rel=1e-3)


def test_a_decoder_judges_reviews_in_a_batch_as_alone(workspace):
    batch = {"per_device_eval_batch_size=1": "per_device_eval_batch_size=4", "num_train_epochs=3": "num_train_epochs=1"}
    alone = batch | {"per_device_eval_batch_size=1": "per_device_eval_batch_size=1"}
    runs = pair(tuple(on_llama("film_reviews:p_tuning", changes) for changes in (alone, batch)), workspace)
    one, other = (logged(run, "eval_loss")[0] for run in runs["peftly"])
    assert other == pytest.approx(one, rel=1e-5)
    one, other = (logged(run, "eval_loss")[0] for run in runs["peft"])
    assert other != pytest.approx(one, rel=1e-3)


def test_the_best_model_of_p_tuning_is_the_one_that_was_the_best(workspace):
    source = script("film_reviews:p_tuning")
    runs = [run_script(source, "peft", workspace())]
    runs.append(run_script(source, "peftly", workspace(), start=runs[0].initial))
    theirs, ours = (logged(run, "eval_loss") for run in runs)
    assert ours[:3] == pytest.approx(theirs[:3], rel=1e-5)
    assert ours[3] == pytest.approx(ours[0], rel=1e-6), "the first epoch is the best"
    assert theirs[3] != pytest.approx(theirs[0], rel=1e-3)


@pytest.mark.parametrize("method", ["p_tuning", "p_tuning_lstm", "prefix_projection"])
def test_a_prompt_from_an_encoder_goes_on_from_a_checkpoint(method, workspace):
    source = script(f"chinese_continue:{method}")
    run = run_script(source, "peftly", workspace())
    assert logged(run, trainer="continued") == logged(run, trainer="unbroken")
    if method == "prefix_projection":
        with pytest.raises(RuntimeError, match="size mismatch"):
            run_script(source, "peft", workspace())
    else:
        theirs = run_script(source, "peft", workspace())
        unbroken = logged(theirs, trainer="unbroken")
        assert logged(theirs, trainer="continued") != pytest.approx(unbroken, rel=1e-3)


@pytest.mark.parametrize("method", ["random", "prefix"])
def test_a_saved_prompt_is_trained_further(method, workspace):
    opened = {'base, "chatbot/checkpoint-4")': 'base, "chatbot/checkpoint-4", is_trainable=True)'}
    source = edited(f"chinese_alpaca:{method}", opened)
    with pytest.raises(ValueError, match="prompt learning"):
        run_script(source, "peft", workspace())
    run = run_script(source, "peftly", workspace())
    model, batch = run.variables["chatbot"].train(), run.variables["tokenizer"]("你好", return_tensors="pt")
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    losses = []
    for _step in range(2):
        losses.append(model(**batch, labels=batch["input_ids"]).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]


def test_a_prefix_is_trained_with_gradient_checkpointing(workspace):
    name = "chinese_alpaca:prefix"
    checkpointing = edited(name, {'report_to="none"': 'report_to="none", gradient_checkpointing=True'})
    plain = run_script(script(name), "peftly", workspace())
    assert logged(run_script(checkpointing, "peftly", workspace(), start=plain.initial)) == pytest.approx(
        logged(plain), rel=1e-5
    )
    with pytest.raises(RuntimeError, match="size"):
        run_script(checkpointing, "peft", workspace())


def test_five_seeds_give_five_prompts(workspace):
    run, again = (run_script(script("twitter_ensemble"), "peftly", workspace(), seed=None) for _ in range(2))
    starts = run.variables["starts"]
    assert all(not torch.equal(one, other) for i, one in enumerate(starts) for other in starts[:i])
    assert all(map(torch.equal, starts, again.variables["starts"]))
    assert run.printed == again.printed
