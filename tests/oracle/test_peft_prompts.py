"""Prompts and prefixes in Hugging Face PEFT and here, on causal, sequence-to-sequence and classification models.

Both ways through files, on one unpadded sequence: outputs, and the gradient with respect to what is trained.
"""

import copy
import json

import peft
import pytest
import torch
import transformers
from data_tokenizers import family
from references import assert_close
from safetensors.torch import load_file
from tiny import TASKS, perturb, random_token_ids, tiny_model

from peftly import (
    PrefixTuning,
    PromptTuning,
    PTuning,
    attach,
    attached,
    load_adapter,
    save_adapter,
    trainable_parameters,
)

PEFT_TASKS = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
}
OURS = {
    "prompt_tuning": PromptTuning(num_virtual_tokens=4, init="random", position="front"),
    "p_tuning": PTuning(num_virtual_tokens=4, encoder_dim=6, position="front"),
    "p_tuning lstm": PTuning(num_virtual_tokens=4, encoder="lstm", encoder_dim=5, position="front"),
    "prefix_tuning": PrefixTuning(num_virtual_tokens=4, init="random"),
    "prefix_tuning mlp": PrefixTuning(num_virtual_tokens=4, projection=True, projection_dim=6),
}
THEIRS = {
    "prompt_tuning": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4),
    "p_tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=4, encoder_hidden_size=6),
    "p_tuning lstm": lambda task: peft.PromptEncoderConfig(
        task_type=task,
        num_virtual_tokens=4,
        encoder_hidden_size=5,
        encoder_reparameterization_type="LSTM",
        encoder_dropout=0.0,
    ),
    "prefix_tuning": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4),
    "prefix_tuning mlp": lambda task: peft.PrefixTuningConfig(
        task_type=task, num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=6
    ),
}
CELLS = [
    (task, architecture, case)
    for task, architectures in TASKS.items()
    for architecture in architectures
    for case in OURS
    if not (architecture == "distilbert" and "prefix" in case)
]
IDS = torch.tensor(random_token_ids([9]))
ANSWER = torch.tensor(random_token_ids([5], seed=1))


def their_config(architecture, task, case):
    config = THEIRS[case](PEFT_TASKS[task])
    if architecture == "distilbert":  # whose sizes PEFT does not know
        config.token_dim, config.num_layers, config.num_attention_heads = 32, 2, 4
    return config


def fresh(architecture, task):
    return tiny_model(architecture, torch.float32, task=task)


def logits_of(model, task):
    """Return the logits at the text, without those that PEFT gives at the prompt."""
    extra = {"decoder_input_ids": ANSWER} if task == "seq2seq_lm" else {}
    logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **extra).logits
    return logits if task == "sequence_classification" else logits[:, -(ANSWER if extra else IDS).shape[1] :]


@pytest.mark.parametrize(("task", "architecture", "case"), CELLS)
@pytest.mark.sample(4)
def test_theirs_loads_here(task, architecture, case, tmp_path):
    theirs = peft.get_peft_model(fresh(architecture, task), their_config(architecture, task, case)).eval()
    perturb([parameter for parameter in theirs.parameters() if parameter.requires_grad])
    theirs.save_pretrained(tmp_path / "adapter")
    model = load_adapter(fresh(architecture, task), tmp_path / "adapter")
    expected = logits_of(theirs, task)
    assert_close(logits_of(model, task), expected)
    # In training PEFT computes the embeddings with a network: the gradient of its output is the gradient of ours.
    network, outputs = theirs.prompt_encoder["default"], []
    hook = network.register_forward_hook(lambda module, args, output: outputs.append(output) or output)
    logits = logits_of(theirs, task)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits.square().sum(), outputs)
    own = attached(model)["default"].parameters()["prompt_embeddings"]
    (ours,) = torch.autograd.grad(logits_of(model, task).square().sum(), [own])
    gradient = gradient.sum(0)
    if task == "seq2seq_lm" and "prefix" in case:  # PEFT uses the first half twice, and the second half never
        half = gradient.shape[1] // 2
        assert gradient[:, half:].abs().max() == 0
        ours, gradient = ours[:, :half] + ours[:, half:], gradient[:, :half]
    assert_close(ours, gradient[: len(ours)], 1e-4)


@pytest.mark.parametrize(("task", "architecture", "case"), CELLS)
@pytest.mark.sample(4)
def test_ours_loads_there(task, architecture, case, tmp_path):
    model = attach(fresh(architecture, task), OURS[case])
    if task == "seq2seq_lm" and "prefix" in case:
        save_adapter(model, tmp_path / "ours")
        with pytest.raises(Exception, match="PEFTLY_PREFIX_TUNING"):
            peft.PeftModel.from_pretrained(fresh(architecture, task), tmp_path / "ours")
        return
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(fresh(architecture, task), tmp_path / "ours").eval()
    assert_close(logits_of(theirs, task), logits_of(model, task))
    theirs = peft.get_peft_model(fresh(architecture, task), their_config(architecture, task, case))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, expected = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in expected.items()}
    said, expected = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    for key in said.keys() - {"base_model_name_or_path", "modules_to_save"}:
        assert said[key] == expected[key], key


@pytest.mark.parametrize("case", ["p_tuning", "p_tuning lstm", "prefix_tuning mlp"])
def test_networks_equal_theirs(case):
    """With the same weights the network of PEFT computes the same prompt embeddings and gradients."""
    theirs = peft.get_peft_model(fresh("llama", "causal_lm"), THEIRS[case]("CAUSAL_LM"))
    network = theirs.prompt_encoder["default"]
    model = attach(fresh("llama", "causal_lm"), OURS[case])
    own = attached(model)["default"]
    named = dict(network.named_parameters())
    assert own.parameters().keys() == named.keys()
    with torch.no_grad():
        for name, parameter in own.parameters().items():
            parameter.copy_(named[name])
    embeddings = (own.prefix if OURS[case].name == "prefix_tuning" else own.virtual_tokens).values()
    expected = network(torch.arange(4))
    assert_close(embeddings, expected, 1e-6)
    seed = torch.randn_like(embeddings)
    for ours, theirs_ in zip(
        torch.autograd.grad(embeddings, list(own.parameters().values()), seed),
        torch.autograd.grad(expected, [named[name] for name in own.parameters()], seed),
        strict=True,
    ):
        assert_close(ours, theirs_, 1e-5)


def test_a_prompt_after_the_first_token_is_not_run_by_peft(tmp_path):
    model = attach(fresh("bert", "sequence_classification"), PromptTuning(num_virtual_tokens=4, init="random"))
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(Exception, match="PEFTLY_PROMPT_TUNING"):
        peft.PeftModel.from_pretrained(fresh("bert", "sequence_classification"), tmp_path / "adapter")


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_a_prompt_after_the_first_token_equals_embeddings_inserted_there(architecture):
    """Insert the prompt embeddings after [CLS] by hand; positions count through, and [CLS] is classified."""
    model = attach(fresh(architecture, "sequence_classification"), PromptTuning(num_virtual_tokens=4, init="random"))
    perturb(trainable_parameters(model).values())
    rows = attached(model)["default"].parameters()["prompt_embeddings"].detach()
    base = fresh(architecture, "sequence_classification")
    name = "classifier" if architecture != "distilbert" else None
    for path, parameter in trainable_parameters(model).items():
        if ".copy." in path:
            base.get_parameter(path.replace("peftly.default.copy.", "")).data = parameter.detach()
    assert name is None or hasattr(base, name)
    words = base.get_input_embeddings()(IDS)
    embeds = torch.cat([words[:, :1], rows[None], words[:, 1:]], 1)
    expected = base(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long)).logits
    assert_close(logits_of(model, "sequence_classification"), expected)


def test_a_prompt_from_a_text_starts_from_the_rows_that_peft_takes(tmp_path):
    """PEFT repeats and cuts the tokens alike. A tokenizer that adds special tokens adds them to PEFT's prompt only."""
    text, tokenizer = "the train was late again", family("byte_level")
    tokenizer.save_pretrained(tmp_path)
    length = len(tokenizer(text)["input_ids"])
    for count in (length, length - 2, 2 * length + 3):
        bases = [tiny_model("llama"), tiny_model("llama")]
        for base in bases:
            base.resize_token_embeddings(len(tokenizer))
        theirs = peft.get_peft_model(
            bases[0],
            peft.PromptTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=count,
                prompt_tuning_init="TEXT",
                prompt_tuning_init_text=text,
                tokenizer_name_or_path=str(tmp_path),
            ),
        )
        bases[1].load_state_dict(theirs.base_model.state_dict())
        ours = attach(bases[1], PromptTuning(num_virtual_tokens=count, init_text=text), tokenizer=tokenizer)
        rows = attached(ours)["default"].virtual_tokens.values()
        assert torch.equal(rows, theirs.prompt_encoder["default"].embedding.weight.float())


@pytest.mark.parametrize("case", ["prompt_tuning", "p_tuning"])
def test_a_model_of_two_stacks_that_writes_no_text_has_one_prompt_there(case, tmp_path):
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    base = transformers.T5Model(transformers.T5Config(**sizes)).eval()
    ids = torch.tensor(random_token_ids([6])) % 64
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :3]}
    model = attach(copy.deepcopy(base), OURS[case])
    perturb(trainable_parameters(model).values())
    expected = model(**inputs).last_hidden_state
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert_close(theirs(**inputs).last_hidden_state, expected)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_close(load_adapter(base, tmp_path / "theirs")(**inputs).last_hidden_state, expected)
