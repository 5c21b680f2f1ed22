"""Batches of models whose outputs for a text change with the padding beside it, and what adapters make of a mask."""

import pytest
import torch
import transformers as tf
from references import assert_close
from tiny import padded, perturb, random_token_ids, tiny_model
from tiny_tasks import tiny_tokenizer

from peftly import (
    LoRA,
    PromptTuning,
    attach,
    classify,
    generate,
    tag_words,
    trainable_parameters,
    use_adapters,
)
from peftly.errors import ConfigError
from peftly.models import reads_padding

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = ["late", "thanks for the help, great service, nobody answers the phone", "late again"]


def model_of(config, auto):
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def text_config(architecture):
    return getattr(tf, f"{architecture}Config")(vocab_size=len(tiny_tokenizer("bert")), pad_token_id=0, **SIZES)


@pytest.mark.parametrize("architecture", ["ConvBert", "FNet", "Bert"])
def test_a_text_has_the_same_answer_alone_and_in_a_batch(architecture):
    """The convolution of ConvBERT reads padding: answers differed by up to 0.1."""
    model, tokenizer = (
        model_of(text_config(architecture), tf.AutoModelForSequenceClassification),
        tiny_tokenizer("bert"),
    )
    assert reads_padding(model) == (architecture != "Bert")
    together = classify(model, tokenizer, TEXTS)
    for text, found in zip(TEXTS, together, strict=True):
        assert classify(model, tokenizer, [text])[0] == pytest.approx(found, abs=1e-6)
    tagger = model_of(text_config(architecture), tf.AutoModelForTokenClassification)
    words = [text.split() for text in TEXTS]
    assert tag_words(tagger, tokenizer, words) == [tag_words(tagger, tokenizer, [text])[0] for text in words]


def test_a_decoder_that_counts_columns_generates_the_same_alone_and_in_a_batch():
    tokenizer = tiny_tokenizer("gpt2")
    decoder = {f"decoder_{key}": value for key, value in (("layers", 2), ("ffn_dim", 48), ("attention_heads", 2))}
    config = tf.BartConfig(vocab_size=len(tokenizer), d_model=32, max_position_embeddings=64, pad_token_id=0, **decoder)
    model = model_of(config, tf.AutoModelForCausalLM)
    with torch.no_grad():
        model.get_decoder().embed_positions.weight.mul_(30)  # so that a token of an answer depends on its position
    assert reads_padding(model, "left")
    together = generate(model, tokenizer, TEXTS, max_new_tokens=4)
    assert together == [generate(model, tokenizer, [text], max_new_tokens=4)[0] for text in TEXTS]


def test_a_model_that_reads_no_text_is_not_given_prompts():
    sides = {f"{side}_{key}": 1 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")}
    config = tf.WhisperConfig(vocab_size=99, d_model=16, max_source_positions=8, pad_token_id=0, **sides)
    model = tf.WhisperForConditionalGeneration(config)
    with pytest.raises(ConfigError, match=r"reads input_features and no prompt; call model.generate"):
        generate(model, tiny_tokenizer("t5"), ["hello"])


IDS, LEFT = padded(random_token_ids([4, 9]), "left")
HOLES = torch.ones_like(IDS)
HOLES[0, 3], HOLES[1, 5:7] = 0, 0


@pytest.mark.parametrize(
    ("architecture", "task", "mask"),
    [
        pytest.param(architecture, task, mask, id=f"{architecture}-{name}")
        for architecture, task in [
            ("bert", "sequence_classification"),
            ("roberta", "token_classification"),
            ("distilbert", "token_classification"),
            ("llama", "causal_lm"),
            ("gpt2", "causal_lm"),
            ("bart", "seq2seq_lm"),
        ]
        for name, mask in [("left", LEFT), ("holes", HOLES)]
        if (architecture, name) != ("gpt2", "left")  # see the next test
    ],
)
def test_an_adapter_that_changes_nothing_changes_nothing_under_any_mask(architecture, task, mask):
    """Positions were derived from the mask, and the answers of BERT moved by up to 0.74."""
    model = tiny_model(architecture, task=task)
    inputs = {"input_ids": IDS, "attention_mask": mask}
    if task == "seq2seq_lm":
        inputs["decoder_input_ids"], inputs["decoder_attention_mask"] = IDS, mask
    with torch.no_grad():
        before = model(**inputs).logits
        attach(model, LoRA(rank=2))
        # Copies of heads are in fp32.
        torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-6, atol=1e-6)


def test_a_left_padded_text_of_a_decoder_has_the_answer_that_it_has_alone():
    """GPT-2 by itself counts the padding in front of a text; masks with holes keep the positions of the base."""
    model = attach(tiny_model("gpt2"), LoRA(rank=2))
    with torch.no_grad():
        in_batch = model(input_ids=IDS, attention_mask=LEFT).logits[0, -4:]
        torch.testing.assert_close(in_batch, model(input_ids=IDS[:1, -4:]).logits[0])


def test_positions_count_tokens_where_a_prompt_was_inserted():
    """A prompt in GPT-2, which counts padding by itself: the text has the answer that it has alone."""
    model = attach(tiny_model("gpt2"), PromptTuning(num_virtual_tokens=3, init="random"))
    with torch.no_grad():
        in_batch = model(input_ids=IDS, attention_mask=LEFT).logits[0, -4:]
        torch.testing.assert_close(in_batch, model(input_ids=IDS[:1, -4:]).logits[0])


@pytest.mark.parametrize(
    "mask", [[1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], ids=["hole", "left", "right"]
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "bloom", "bert", "roberta", "bart"])
def test_a_name_for_each_element_gives_the_outputs_of_one_name_for_all(architecture, mask):
    """A batch with names counted tokens behind holes, and in left-padded encoders: logits differed by 1.5."""
    model = attach(tiny_model(architecture, torch.float32).eval(), LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    ids, masks = torch.tensor(random_token_ids([6, 6])), torch.tensor([[int(bit) for bit in mask], [1] * 6])
    with torch.no_grad():
        expected = model(ids, attention_mask=masks).logits
        with use_adapters(model, adapters=["default", "default"]):
            found = model(ids, attention_mask=masks).logits
    assert_close(found[masks.bool()], expected[masks.bool()])
