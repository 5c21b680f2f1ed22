"""A small ChatML template and conversation, and the text that is trained."""

import copy

from data_tokenizers import family

from peftly.data import EncodedExample

HEADER = "<|im_start|>{{ message['role'] }}\n"
CUE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = "{% for message in messages %}" + HEADER + "{{ message['content'] }}<|im_end|>\n{% endfor %}" + CUE
TURN = (
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}INSIDE{% endgeneration %}OUTSIDE"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}"
)
MARKED = "{% for message in messages %}" + HEADER + TURN + "{% endfor %}" + CUE
CONVERSATION = (
    {"role": "system", "content": "say it in one word"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "the train was late"},
    {"role": "assistant", "content": "no, never"},
)


def chatty(template, end="<|im_end|>"):
    tokenizer = copy.deepcopy(family("byte_level"))
    tokenizer.eos_token = end
    tokenizer.chat_template = template
    return tokenizer


def runs(encoded: EncodedExample, tokenizer) -> list[str]:
    """Text of each run of trained tokens."""
    found, before = [], False
    for token, trained in zip(encoded.input_ids, encoded.trained, strict=True):
        if trained:
            found[len(found) if not before else -1 :] = [[*(found[-1] if before else []), token]]
        before = trained
    return [tokenizer.decode(run) for run in found]
