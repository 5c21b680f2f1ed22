"""Completions of prompts by a language model, with or without adapters; whole or streamed in pieces."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

from transformers import LogitsProcessorList, StoppingCriteriaList

from peftly.adapters import AdapterChoice
from peftly.data import (
    EncodedExample,
    Example,
    chat_ends,
    collate,
    encode_example_prompt,
    encode_sources,
    prompt_ids,
)
from peftly.errors import ConfigError, DataError
from peftly.inference.batches import by_length, check_adapters, on_device, use_batch
from peftly.inference.inputs import Prompt, prompts_of
from peftly.inference.sampling import Sampling, prompt_generators, sampling_processors, sampling_settings
from peftly.inference.stopping import StopTexts, TextPieces, completion_text, stop_texts, stop_token_ids
from peftly.injection import evaluation_mode
from peftly.models import max_answer_tokens, max_input_tokens, reads_padding
from peftly.settings import check_seed

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["generate", "greedy_settings"]

_MAX_BEAMS = 1000


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float | None = None,
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = (),
    seed: int | Sequence[int] | None = None,
    stream: Callable[[str], None] | None = None,
    chat: bool = False,
    batch_size: int = 16,
    adapters: Sequence[AdapterChoice] | None = None,
) -> list[str]:
    """Return the completion of every prompt, in order. The settings have the names and meanings of transformers.

    A completion depends on its prompt and the settings only, not on the other prompts of the call. With a `seed` this
    also holds for sampled completions: each prompt has its own random generator, and a prompt that occurs twice gets
    two different draws. The global random generators of PyTorch are neither read nor changed.

    Args:
        model: causal language model or encoder-decoder. Its modes are restored afterwards.
        tokenizer: tokenizer of the model.
        prompts: one prompt or several: texts, tokenised as in training, or conversations that the model answers. An
            adapter with `position: template` needs the result of `RowFormat.format_prompt`, which marks positions. A
            conversation with tools is `Example(messages=..., tools=...)`.
        max_new_tokens: maximum number of tokens of a completion.
        do_sample: whether to draw tokens; None: if `temperature` is above 0. True without a `temperature` means 1.0.
        temperature: divisor of the logits; 0 or None: take the most likely token.
        top_k: draw from this number of most likely tokens; None: no limit.
        top_p: draw from the most likely tokens whose probabilities add up to this value.
        min_p: draw from the tokens with at least this fraction of the highest probability; None: no limit.
        num_beams: above 1, search for the most likely completion with this number of beams; not with sampling.
        repetition_penalty: above 1, makes tokens of the prompt and of the completion so far less likely.
        stop: one text or several. A completion ends when it contains a stop text, which is not part of the result.
        seed: seed of the draws, or a seed for each prompt; None: different draws in every call, also after
            `torch.manual_seed`.
        stream: function that receives the completion of a single prompt in pieces.
        chat: whether a text is a user's message, to be formatted with the tokenizer's chat template.
        batch_size: number of prompts per forward pass.
        adapters: active adapters of each prompt: a name, several names, or None for no adapter; None instead of a
            list: the model's active adapters for all prompts.

    Returns:
        Completions without special tokens.

    Raises:
        ConfigError: a setting is out of range or has no effect together with the others, or the model does not
            generate text.
        DataError: a prompt has no tokens, half of a character or another type, or the tokenizer has no chat template
            for a conversation.
    """
    listed = prompts_of(prompts)
    sampling = sampling_settings(do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    _check(max_new_tokens, num_beams, repetition_penalty, sampling)
    _check_seeds(seed, len(listed))
    if stream is not None and (len(listed) != 1 or num_beams > 1):
        raise ConfigError(
            f"stream needs one prompt and no beam search; got {len(listed)} prompts and num_beams={num_beams}"
        )
    check_adapters(adapters, len(listed), "prompt")
    if not model.can_generate():
        raise ConfigError(f"a {type(model).__name__} does not generate text; use peftly.classify or peftly.tag_words")
    if model.main_input_name != "input_ids":
        raise ConfigError(f"a {type(model).__name__} reads {model.main_input_name} and no prompt; call model.generate")
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    encoded = [_encode(prompt, tokenizer, chat=chat, for_encoder=is_encoder_decoder) for prompt in listed]
    given_stops = stop_texts(stop)
    turn_ends = chat_ends(tokenizer).texts
    stops = [(*given_stops, *turn_ends) if _is_conversation(prompt, chat=chat) else given_stops for prompt in listed]
    settings = greedy_settings(model, tokenizer, ends=stop_token_ids(given_stops, tokenizer))
    settings.update(max_new_tokens=max_new_tokens, num_beams=num_beams, repetition_penalty=repetition_penalty)
    ends = settings.eos_token_id or ()
    prompt_tokens = [example.input_ids for example in encoded]
    generators = []
    if sampling is not None:
        generators = prompt_generators(encoded, adapters, seed)
    completions = [""] * len(encoded)
    # transformers 5.17 applies the repetition penalty to padding in decoder prompts, so their batches have no padding.
    side: Literal["left", "right"] = "right" if is_encoder_decoder else "left"
    equal_lengths = (repetition_penalty != 1 and not is_encoder_decoder) or reads_padding(model, side)
    rooms = _rooms(model, [len(ids) for ids in prompt_tokens], max_new_tokens)
    # Near the last position, a completion is as long as its own prompt allows, not the longest prompt of a batch.
    equal_lengths = equal_lengths or min(rooms, default=max_new_tokens) < max_new_tokens
    with evaluation_mode(model), _contiguous_head_input(model):
        for chosen in by_length([len(ids) for ids in prompt_tokens], batch_size, equal_lengths=equal_lengths):
            examples = [encoded[index] for index in chosen]
            settings.max_new_tokens = min(rooms[index] for index in chosen)
            batch = on_device(collate(examples, pad_id=settings.pad_token_id, side=side), model)
            # A decoder starts from one token, which is an end token in BART.
            prompt_length = 1 if is_encoder_decoder else batch["input_ids"].shape[1]
            batch_stops = [stops[index] for index in chosen]
            processors = LogitsProcessorList()
            if sampling is not None:
                processors = sampling_processors(sampling, [generators[index] for index in chosen])
            with use_batch(model, examples, None if adapters is None else [adapters[index] for index in chosen]):
                output = model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    generation_config=settings,
                    logits_processor=processors,
                    stopping_criteria=StoppingCriteriaList(
                        [StopTexts(tokenizer, batch_stops, prompt_length)] if any(batch_stops) else []
                    ),
                    streamer=None if stream is None else TextPieces(tokenizer, stream, batch_stops[0], ends),
                )
            for index, ids in zip(chosen, output[:, prompt_length:].tolist(), strict=True):
                completions[index] = completion_text(tokenizer, ids, stops[index], ends)
    return completions


def _rooms(model: "PreTrainedModel", prompt_lengths: Sequence[int], max_new_tokens: int) -> list[int]:
    """Return the maximum number of tokens of each completion, by the positions that the model has.

    Raises:
        DataError: a prompt has more tokens than the model has positions.
    """
    limit, longest = max_input_tokens(model), max(prompt_lengths, default=0)
    if limit is not None and longest > limit:
        raise DataError(
            f"a prompt has {longest} tokens, and the model has positions for {limit}; give a shorter prompt"
        )
    if model.config.is_encoder_decoder:
        answer = max_answer_tokens(model)
        return [max_new_tokens if answer is None else min(max_new_tokens, answer)] * len(prompt_lengths)
    # The last token of a completion needs no position.
    return [max_new_tokens if limit is None else min(max_new_tokens, limit - length + 1) for length in prompt_lengths]


def _check_seeds(seed: int | Sequence[int] | None, count: int) -> None:
    """Raise a ConfigError for a seed out of range, or for another number of seeds than of prompts."""
    if isinstance(seed, Sequence) and len(seed) != count:
        raise ConfigError(f"seed is one number, or one for each prompt; got {len(seed)} for {count} prompts")
    for each in seed if isinstance(seed, Sequence) else [] if seed is None else [seed]:
        check_seed(each)


def _check(max_new_tokens: int, num_beams: int, repetition_penalty: float, sampling: Sampling | None) -> None:
    """Raise a ConfigError if a setting is out of range, or if sampling and beam search are combined."""
    if max_new_tokens < 1 or not 1 <= num_beams <= _MAX_BEAMS or not 0 < repetition_penalty < math.inf:
        raise ConfigError(
            f"max_new_tokens must be at least 1, num_beams from 1 to {_MAX_BEAMS} and repetition_penalty above 0; "
            f"got {max_new_tokens}, {num_beams} and {repetition_penalty}"
        )
    if sampling is not None and num_beams > 1:
        raise ConfigError(
            f"num_beams={num_beams} searches and temperature={sampling.temperature} draws; use one of the two"
        )


def greedy_settings(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, ends: Sequence[int] = ()
) -> "GenerationConfig":
    """Return the model's generation settings without sampling.

    Args:
        model: model with a `generation_config`.
        tokenizer: tokenizer of the model.
        ends: ids of tokens that end a text, besides those of the tokenizer, of its chat template and of the model.
    """
    settings = copy.deepcopy(model.generation_config)
    settings.update(do_sample=False, temperature=None, top_p=None, top_k=None, typical_p=None, min_p=None)
    settings.update(num_return_sequences=1, return_dict_in_generate=False, max_length=None)
    configured = settings.eos_token_id
    known = [tokenizer.eos_token_id, *(configured if isinstance(configured, list | tuple) else [configured])]
    known += [*chat_ends(tokenizer).ids, *ends]
    settings.eos_token_id = [end for end in dict.fromkeys(known) if end is not None] or None
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # Any id does: the attention mask follows from lengths.
    settings.pad_token_id = int(pad or 0)
    return settings


@contextmanager
def _contiguous_head_input(model: "PreTrainedModel") -> Iterator[None]:
    """Make the input of the output head contiguous.

    The last position of a batch of prompts is a slice. In bf16 torch 2.13 copies a frozen head's weight for every batch
    element of a slice, which for a vocabulary of 49,152 takes half as long as the whole base.
    """
    head = cast(Any, model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _is_conversation(prompt: Prompt, *, chat: bool) -> bool:
    if isinstance(prompt, Example | EncodedExample):
        return isinstance(prompt, Example) and bool(prompt.messages)
    return chat or not isinstance(prompt, str)


def _encode(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", *, chat: bool, for_encoder: bool) -> EncodedExample:
    """Return the tokens of a prompt, with the positions that a template marks."""
    if isinstance(prompt, EncodedExample):
        return prompt
    if isinstance(prompt, str) and chat:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        prompt = Example(prompt)
    if not isinstance(prompt, Example) or prompt.messages:
        messages, tools = (prompt.messages, prompt.tools) if isinstance(prompt, Example) else (prompt, ())
        ids = prompt_ids(messages, tokenizer, tools)
        encoded = EncodedExample(ids, [False] * len(ids))
    else:
        encoded = encode_sources([prompt], tokenizer)[0] if for_encoder else encode_example_prompt(prompt, tokenizer)
    if not encoded.input_ids:
        text = prompt.prompt if isinstance(prompt, Example) else prompt
        raise DataError(f"the prompt {text!r} has no tokens; give a prompt with at least one word")
    return encoded
