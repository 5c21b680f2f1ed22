"""Text from a model, adapted or not: prompts in, completions out, a word at a time if wanted."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TextStreamer, TopPLogitsWarper

from peftly.adapters import AdapterChoice, use_adapters, use_prompt_positions
from peftly.data import EncodedExample, Example, collate, encode_prompt_of, encode_sources, prompt_ids
from peftly.errors import ConfigError, DataError
from peftly.injection import evaluation_mode

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["generate", "greedy_settings"]

Conversation = Sequence[Mapping[str, str]]
"""Messages with `role` and `content`, as chat templates read them."""

Prompt = str | Example | Conversation
"""A text, a text with places that a template marks in it (from `RowFormat.format_prompt`), or a conversation."""


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stream: Callable[[str], None] | None = None,
    chat: bool = False,
    batch_size: int = 16,
    adapters: Sequence[AdapterChoice] | None = None,
) -> list[str]:
    """Return the completion of every prompt, in order.

    A completion depends on its prompt and the settings, not on what else is in the call. So do, under a `seed`, sampled
    ones: each prompt has a generator of its own, and a prompt that comes twice gets two different draws.

    Args:
        model: a causal language model or an encoder-decoder; left as it was found.
        tokenizer: the model's own.
        prompts: texts, tokenised just as in training, or conversations that the model is to answer; one or several. For
            an adapter with `position: template` what `RowFormat.format_prompt` makes of a row, which knows the places.
        max_new_tokens: where a completion is cut if the model does not end it.
        temperature: 0 takes the likeliest token; above, tokens are drawn, the more freely the higher.
        top_p: draw from the likeliest tokens that together have this probability.
        num_beams: above 1, search for the likeliest whole text; needs temperature 0.
        repetition_penalty: above 1, words of the prompt and of the completion so far become less likely.
        seed: of the draws; None: different ones in every call.
        stream: called with each piece of text as soon as it is certain; for one prompt.
        chat: a text is what a user says, and is wrapped in the tokenizer's chat template.
        batch_size: prompts that go through the model at once.
        adapters: what works on each prompt (one adapter, several, or None), as `use_adapters` takes it; None: what is
            on works on all.

    Raises:
        ConfigError: settings that cannot be, or that do not go together, or a model that does not write.
        DataError: a prompt without a single token, or a conversation that the tokenizer has no template for.
    """
    several = _listed(prompts)
    _check(max_new_tokens, temperature, top_p, num_beams, repetition_penalty)
    if stream is not None and (len(several) != 1 or num_beams > 1):
        raise ConfigError(
            f"stream shows one greedy or sampled text; got {len(several)} prompts and num_beams={num_beams}"
        )
    if adapters is not None and len(adapters) != len(several):
        raise ConfigError(f"adapters says what works on each prompt; got {len(adapters)} for {len(several)} prompts")
    _check_model(model)
    encoder = bool(model.config.is_encoder_decoder)
    encoded = [_encode(prompt, tokenizer, chat=chat, encoder=encoder) for prompt in several]
    settings = greedy_settings(model, tokenizer)
    settings.update(max_new_tokens=max_new_tokens, num_beams=num_beams, repetition_penalty=repetition_penalty)
    ids = [row.input_ids for row in encoded]
    generators = _generators(ids, torch.seed() if seed is None else seed) if temperature > 0 else None
    completions = [""] * len(encoded)
    # Older transformers (5.17) count padding among the words that a penalty is for, so those batches have none. The
    # words of an encoder are not among them.
    for chosen in _batches(ids, batch_size, padded=encoder or repetition_penalty == 1.0):
        batch = collate(
            [encoded[index] for index in chosen],
            pad_id=settings.pad_token_id,
            side="right" if encoder else "left",
        )
        processors = LogitsProcessorList()
        if generators is not None:
            processors.extend([TemperatureLogitsWarper(float(temperature)), TopPLogitsWarper(float(top_p))])
            processors.append(_Draw([generators[index] for index in chosen]))
        own = nullcontext() if adapters is None else use_adapters(model, rows=[adapters[index] for index in chosen])
        with (
            evaluation_mode(model),
            own,
            use_prompt_positions(model, batch.get("prompt_positions")),
            _whole_rows(model),
        ):
            output = model.generate(
                input_ids=batch["input_ids"].to(model.device),
                attention_mask=batch["attention_mask"].to(model.device),
                generation_config=settings,
                logits_processor=processors,
                streamer=None if stream is None else _Streamer(tokenizer, stream),
            )
        written = output if encoder else output[:, batch["input_ids"].shape[1] :]
        for index, row in zip(chosen, written.tolist(), strict=True):
            completions[index] = cast(str, tokenizer.decode(row, skip_special_tokens=True))
    return completions


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Turns taking the likeliest token into a draw: argmax(logits + Gumbel noise) is distributed as softmax(logits).

    Each row has a generator of its own, so what is drawn for it does not depend on its batch-mates; with
    `torch.multinomial` it would.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=one) for one in self._generators])
        return scores.float() - noise.log().to(scores.device)


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Hands pieces of text on instead of printing them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stream: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stream = stream

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._stream(text)


@contextmanager
def _whole_rows(model: "PreTrainedModel") -> Iterator[None]:
    """Let the output head have its input side by side in memory.

    The last column of a batch of prompts is not, and in bf16 torch 2.13 then copies a frozen head's weight for every
    row, which for a vocabulary of 49,152 takes half as long as the whole base.
    """
    head = cast(Any, model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _listed(prompts: Any) -> list[Prompt]:
    if isinstance(prompts, str | Example) or (prompts and isinstance(prompts[0], Mapping)):
        return [prompts]
    return list(prompts)


def _check(max_new_tokens: int, temperature: float, top_p: float, num_beams: int, repetition_penalty: float) -> None:
    if max_new_tokens < 1 or num_beams < 1:
        raise ConfigError(f"max_new_tokens and num_beams must be at least 1; got {max_new_tokens} and {num_beams}")
    if temperature < 0 or not 0 < top_p <= 1 or repetition_penalty <= 0:
        raise ConfigError(
            "temperature must be at least 0, top_p within (0, 1] and repetition_penalty above 0; "
            f"got {temperature}, {top_p} and {repetition_penalty}"
        )
    if temperature == 0 and top_p < 1:
        raise ConfigError(f"top_p={top_p} has no effect at temperature 0; give a temperature above 0, or leave it out")
    if temperature > 0 and num_beams > 1:
        raise ConfigError(f"num_beams={num_beams} searches and temperature={temperature} draws; use one of the two")


def _check_model(model: "PreTrainedModel") -> None:
    if not model.can_generate():
        raise ConfigError(
            f"a {type(model).__name__} does not write: peftly.classify and peftly.tag_words say what it makes of a text"
        )


def _encode(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", *, chat: bool, encoder: bool) -> EncodedExample:
    if isinstance(prompt, str) and chat:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        prompt = Example(prompt)
    if not isinstance(prompt, Example):
        ids = prompt_ids(prompt, tokenizer)
        encoded = EncodedExample(ids, [False] * len(ids))
    else:
        encoded = encode_sources([prompt], tokenizer)[0] if encoder else encode_prompt_of(prompt, tokenizer)
    if not encoded.input_ids:
        words = prompt.prompt if isinstance(prompt, Example) else prompt
        raise DataError(f"the prompt {words!r} has no tokens; give at least one word to go on from")
    return encoded


def greedy_settings(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "GenerationConfig":
    """Return the model's own settings without its taste in sampling, ending at any token that ends a text here."""
    settings = copy.deepcopy(model.generation_config)
    settings.update(do_sample=False, temperature=None, top_p=None, top_k=None, typical_p=None, min_p=None)
    settings.update(num_return_sequences=1, return_dict_in_generate=False, max_length=None)
    ends = settings.eos_token_id
    known = list(ends) if isinstance(ends, list | tuple) else [ends]
    settings.eos_token_id = [end for end in dict.fromkeys([tokenizer.eos_token_id, *known]) if end is not None] or None
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # Any id does: padding is masked by length.
    settings.pad_token_id = int(pad or 0)
    return settings


def _generators(prompts: Sequence[Sequence[int]], seed: int) -> list[torch.Generator]:
    """Return a generator for each prompt: the same for the same prompt, but for the second time it comes."""
    drawn: defaultdict[tuple[int, ...], int] = defaultdict(int)
    generators = []
    for prompt in prompts:
        generators.append(torch.Generator().manual_seed((seed * 1_000_003 + drawn[tuple(prompt)]) % 2**63))
        drawn[tuple(prompt)] += 1
    return generators


def _batches(prompts: Sequence[Sequence[int]], batch_size: int, *, padded: bool) -> Iterator[list[int]]:
    """Yield batches of indices, in order of length; without padding only prompts of one length go together."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) == batch_size or not (padded or len(prompts[index]) == len(prompts[batch[0]]))):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
