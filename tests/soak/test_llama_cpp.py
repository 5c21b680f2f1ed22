"""llama.cpp as a client of the exports: tokens, templates, logits and greedy text of a real base with an adapter.

llama.cpp is built from the source distribution of llama-cpp-python, the extra `llama`. Keys and values are stored in
f32 there too, since its default is f16.
"""

import random

import llama_cpp_figures
import numpy as np
import pytest
import torch
from tiny import perturb
from tiny_gguf import TEXTS, make_model, make_sentencepiece, make_tokenizer, write_sentencepiece

from peftly import LoRA, attach, export, generate, load, load_base, save_adapter, trainable_parameters, use_adapters
from peftly.exporting.gguf import write_model

try:
    import llama_cpp
except ImportError:
    llama_cpp = None

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        llama_cpp is None, reason="needs llama.cpp: pip install '.[llama]' builds it (cmake, a compiler)"
    ),
]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template without the system message that the base's own template adds."""

PROMPTS = [
    "The train was 12345 minutes late, again:\n  it's not funny!",
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):\n",
    "Dear Sir or Madam,",
    "1, 2, 3, 4,",
    "The recipe needs two eggs,",
    "In 1969, men walked",
    "Ünïcode wörds and ünusual",
    "She opened the door and",
    "The three laws of robotics are",
    "import numpy as np\n",
    "Rain in the mountains",
    "My parcel has not arrived,",
    "Q: What is 2 + 2?\nA:",
    "The quick brown fox",
    "To be, or not to be:",
    "A linear layer computes",
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
    "日本語の文章は",
]
CHARACTERS = [
    chr(code)
    for first, last in (
        *((9, 14), (32, 127), (160, 700), (0x300, 0x370), (0x370, 0x600), (0x900, 0x980), (0x2000, 0x2070)),
        *((0x3040, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAC40), (0x1F300, 0x1F650)),
    )
    for code in range(first, last)
]
PIECES = ["<|im_start|>", "<|im_end|>\n", "  ", "12 345", "it's", "\r\n\n", "<|endoftext|>"]


def opened(file, **settings):
    return llama_cpp.Llama(
        *(str(file),),
        n_ctx=512,
        n_threads=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
        **settings,
    )


def their_logits(llama, ids):
    llama.reset()
    llama.eval(ids)
    return torch.tensor(np.array(llama.scores[: len(ids)]))


def our_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def their_text(llama, prompt, tokens=32):
    answer = llama.create_completion(prompt, max_tokens=tokens, temperature=0.0)
    return answer["choices"][0]["text"]


def difference(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with an adapter on a real base; it has a chat template of its own."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    model, tokenizer = load_base("smollm2-135m", dtype="float32")
    config = LoRA(rank=8, rslora=True, rank_pattern={"q_proj": 4}, alpha_pattern={"down_proj": 20})
    attach(model, config, tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), 0.01)
    notes = {"row_format": {"kind": "chat", "chat_template": TEMPLATE}}
    save_adapter(model, folder / "adapter", notes=notes)
    return folder


@pytest.fixture(scope="module")
def ours(here):
    return load(here / "adapter", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def merged(here):
    """The base with the merged adapter in llama.cpp, in f32."""
    export(here / "adapter", "gguf", here / "merged", dtype="f32")
    llama = opened(here / "merged" / "merged-f32.gguf")
    yield llama
    llama.close()


@pytest.fixture(scope="module")
def beside(here):
    """The base in llama.cpp, in f32, with the adapter loaded from a file of its own."""
    export("smollm2-135m", "gguf", here / "base", dtype="f32")
    export(here / "adapter", "gguf-lora", here / "lora")
    llama = opened(here / "base" / "base-f32.gguf", lora_path=str(here / "lora" / "lora-f32.gguf"))
    yield llama
    llama.close()


def test_tokens(ours, merged):
    draw = random.Random(0)
    texts = [*PROMPTS, *TEXTS]
    for _ in range(2000):
        choices = [draw.choice(CHARACTERS) if draw.random() < 0.9 else draw.choice(PIECES) for _ in range(30)]
        texts.append("".join(choices[: draw.randint(1, 30)]))
    for text in texts:
        ids = merged.tokenize(text.encode(), add_bos=True, special=True)
        assert ids == ours.tokenizer(text).input_ids, repr(text)
        assert merged.detokenize(ids, special=True).decode(errors="replace") == ours.tokenizer.decode(ids), repr(text)


def test_chat(ours, merged):
    """The chat template in the file is that of the adapter, and llama.cpp's answer to a conversation is ours."""
    assert merged.metadata["tokenizer.chat_template"] == ours.tokenizer.chat_template == TEMPLATE
    for prompt in ("What is the capital of France?", "Write a haiku about rain."):
        messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": prompt}]
        answer = merged.create_chat_completion(messages, max_tokens=24, temperature=0.0)
        rendered = ours.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert answer["usage"]["prompt_tokens"] == len(ours.tokenizer(rendered).input_ids)
        (expected,) = generate(*ours, [messages], max_new_tokens=24)
        assert answer["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize("kind", ["merged", "beside"])
def test_logits_and_greedy_text(kind, ours, request):
    llama = request.getfixturevalue(kind)
    largest = 0.0
    for prompt in PROMPTS:
        ids = ours.tokenizer(prompt).input_ids
        expected = our_logits(ours.model, ids)
        largest = max(largest, difference(their_logits(llama, ids), expected))
    ids = ours.tokenizer(PROMPTS[0]).input_ids
    with use_adapters(ours.model):
        effect = difference(our_logits(ours.model, ids), expected := their_logits(llama, ids))
    assert len(expected) == len(ids)
    texts = generate(*ours, PROMPTS, max_new_tokens=32)
    assert largest < 1e-5
    assert effect > 0.01
    assert [their_text(llama, prompt) for prompt in PROMPTS] == texts
    llama_cpp_figures.write(kind, largest)


@pytest.mark.parametrize(("dtype", "bound"), [("f16", 2e-3), ("bf16", 3e-2), ("q8_0", 8e-2)])
def test_other_dtypes(dtype, bound, here, ours):
    export(here / "adapter", "gguf", here / dtype, dtype=dtype)
    llama = opened(here / dtype / f"{dtype}-{dtype}.gguf")
    ids = ours.tokenizer(PROMPTS[0]).input_ids
    found = difference(their_logits(llama, ids), our_logits(ours.model, ids))
    llama.close()
    (here / dtype / f"{dtype}-{dtype}.gguf").unlink()
    assert 1e-5 < found < bound
    llama_cpp_figures.write(dtype, found)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 3.0, "original_max_position_embeddings": 32, "beta_fast": 16.0}
MODELS = {
    "llama": ("llama", "smollm", {}),
    "llama tied": ("llama", "gpt-2", {"tie_word_embeddings": True}),
    "llama wide heads": ("llama", "llama-bpe", {"head_dim": 32}),
    "llama llama3": ("llama", "llama-bpe", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, **LLAMA3}}),
    "llama linear": (
        "llama",
        "gpt-2",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 3.0}},
    ),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen2 yarn": ("qwen2", "qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4, **YARN}}),
    "qwen3 tied": ("qwen3", "qwen2", {"tie_word_embeddings": True}),
    "qwen3 yarn": ("qwen3", "qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4, **YARN}}),
}


@pytest.mark.parametrize("case", MODELS)
def test_architectures_tokenizers_and_ropes(case, tmp_path):
    architecture, split, changes = MODELS[case]
    model, tokenizer = make_model(architecture, **changes), make_tokenizer(split)
    write_model(tmp_path / "m.gguf", model, tokenizer, "f32", name="m")
    llama = opened(tmp_path / "m.gguf")
    text = " ".join(TEXTS)
    ids = llama.tokenize(text.encode(), add_bos=True, special=True)
    assert ids == tokenizer(text).input_ids
    assert len(ids) > 50
    assert difference(their_logits(llama, ids[:90]), our_logits(model, ids[:90])) < 1e-5
    llama.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_updates_of_embedding_and_head(architecture, tmp_path):
    """All that a LoRA file can hold, on a base that does not tie its head to its embedding."""
    make_model(architecture).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model, tokenizer = load_base(str(tmp_path / "base"), dtype="float32")
    attach(model, LoRA(rank=4, target_modules=r".*(_proj|lm_head|embed_tokens)", rank_pattern={"embed_tokens": 2}))
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    export(str(tmp_path / "base"), "gguf", tmp_path / "gguf", dtype="f32")
    export(tmp_path / "adapter", "gguf-lora", tmp_path / "lora")
    llama = opened(tmp_path / "gguf" / "gguf-f32.gguf", lora_path=str(tmp_path / "lora" / "lora-f32.gguf"))
    ids = tokenizer(TEXTS[0]).input_ids
    assert difference(their_logits(llama, ids), our_logits(model, ids)) < 1e-5
    llama.close()


@pytest.mark.parametrize("prefix", [None, True, False])
def test_tokens_of_a_sentencepiece_base(prefix, tmp_path):
    """A GGUF file of somebody else, which exports cannot write, has llama.cpp's tokens here."""
    write_sentencepiece(tmp_path / "m.gguf", make_sentencepiece(prefix=True), prefix)
    llama, tokenizer = opened(tmp_path / "m.gguf"), load_base(str(tmp_path / "m.gguf"), dtype="float32").tokenizer
    draw = random.Random(0)
    texts = [*TEXTS, "  two", "<s>hi</s> there", *("".join(draw.choices(CHARACTERS, k=20)) for _ in range(200))]
    for text in texts:
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text).input_ids, repr(text)
    llama.close()
