"""Settings of the whole suite, and tiny bases in folders, which every test that needs one shares."""

import gc
import os
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CORPUS = [
    "Tweet text : @shop my order never arrived and nobody answers Label : complaint",
    "Tweet text : thanks for the quick help, great service today Label : no complaint",
    "The train was late again and the app crashed twice.",
    "What time do you open on Sunday? I love the new store!",
    "system user assistant prompt completion instruction input output text label",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run about one of N cells of a grid marked `sample(N)`, chosen by a hash of its id; `make soak` runs the rest."""
    for item in items:
        marker = item.get_closest_marker("sample")
        if marker is not None and zlib.crc32(item.name.encode()) % marker.args[0]:
            item.add_marker(pytest.mark.soak)


@pytest.fixture(scope="module", autouse=True)
def _frozen_imports() -> None:
    """Keep libraries and collected tests out of garbage collection: accelerate collects at the end of each training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt also where the suite was started in the background, which ignores it (`make test &`).

    Processes that tests start inherit a signal that is ignored, but no handler.
    """
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Let `os.fsync` return at once: thousands of tests write adapters, and the crash tests record its calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)
        yield


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a random llama of two layers and a byte-level BPE tokenizer, made offline."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # with the usual 0.02 the frozen head of such a small model gives flat probabilities
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def task_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with the tiny bases of `tiny_tasks`, by architecture; each is made once."""
    from tiny_tasks import tiny_base

    root = tmp_path_factory.mktemp("task-bases")

    def folder_of(architecture: str) -> Path:
        folder = root / architecture
        return folder if folder.is_dir() else tiny_base(architecture, folder)

    return folder_of
