"""Damaged and hostile adapter folders, made at random from sound ones, and the check that all of them are survived."""

import copy
import json
import random
import re
import resource
import shutil
import struct
from collections import Counter
from pathlib import Path

import torch
from adapter_files import without_checksums
from model_state import observable_state
from safetensors.torch import load_file, save_file
from tiny import perturb, tiny_model

from peftly import METHODS, LoRA, attach, detach, export, load_adapter, save_adapter, trainable_parameters
from peftly.adapters.adapter_set import open_adapters
from peftly.errors import PeftlyError

CONFIG, NOTES = "adapter_config.json", "peftly.json"
TENSORS, TRAINING = "adapter_model.safetensors", "training.safetensors"
JSON_FILES, TENSOR_FILES = (CONFIG, NOTES), (TENSORS, TRAINING)
METHOD_CONFIGS = {
    "lora": LoRA(rank=3, target_modules=r".*(q_proj|up_proj)", rank_pattern={"q_proj": 2}, alpha_pattern={"0.*": 3}),
    "pissa": LoRA(rank=2, init="pissa", target_modules=("q_proj",), modules_to_save=("lm_head",)),
    "dora": METHODS["dora"].config(rank=2, target_modules=("v_proj",), bias="all"),
    "ia3": METHODS["ia3"].config(),
    "prompt_tuning": METHODS["prompt_tuning"].config(num_virtual_tokens=3, init="random", residual_dim=4),
    "p_tuning": METHODS["p_tuning"].config(num_virtual_tokens=3, encoder="lstm", encoder_dim=4, position="template"),
    "prefix_tuning": METHODS["prefix_tuning"].config(num_virtual_tokens=2, projection=True, projection_dim=3),
    "adapter": METHODS["adapter"].config(bottleneck_dim=2),
    "bitfit": METHODS["lora"].config(rank=2, bias="lora_only", target_modules=("embed_tokens", "o_proj")),
    "selective": METHODS["selective"].config(head=True, last_layers=0, layer_norms=True, modules=r".*\.0\..*q_proj"),
}
NOTED = {
    "row_format": {"kind": "completion", "template": "{prompt}", "target": "completion", "labels": [], "pair": None},
    "quantization": {"kind": "nf4", "double": False},
    "labels": ["no", "yes"],
}
VALUES = [
    None, True, -1, 0, 1, 2, 3, 50_000, 900_000, 10**9, 2**63, 10**30, -(10**18), 0.5, 1e-320, 1e308, "", "16",
    "é\n\x1b[31m\u202e", "\ud800", "a" * 10_000, "all-linear", ".*", "(a", "(?i)Q_PROJ", "(.*)(.*)(.*)", "__class__",
    "((a{999}){999}){999}", "../../x", "PREFIX_TUNING", "LORA", "SEQ_CLS", [], [[]], ["q_proj"], [1, None],
    ["q_proj"] * 1000, {}, {"a": 1}, {"": {"": {}}}, {"q_proj": 10**9}, {"q_proj": -1}, {"(": 1}, {"q_proj": "8"},
    {"name": "lora"}, {"name": ["lora"]},
]  # fmt: skip
SETTINGS = 2 * (
    "r", "rank", "target_modules", "rank_pattern", "num_virtual_tokens", "bottleneck_dim", "modules", "encoder_dim",
    "residual_dim", "projection_dim", "encoder_layers", "last_layers", "modules_to_save", "feedforward_modules",
)  # fmt: skip
TEXTS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 100_000,
    "[" * 100_000,
    '{"a":' * 100_000,
    "[" * 500 + "]" * 500,
]
EXPONENTIAL = r"(\w|[a-z]|.)*\d\d\d"


def sound_adapters(root: Path) -> dict[str, Path]:
    """Write one adapter of each of `METHOD_CONFIGS`, and a folder with several that were saved together."""
    folders = {}
    for name, config in METHOD_CONFIGS.items():
        model = tiny_model("llama", torch.float32)
        model.name_or_path = model.config.name_or_path = "tiny"
        attach(model, config)
        perturb(trainable_parameters(model).values())
        folders[name] = save_adapter(model, root / name, notes=NOTED)
    several = tiny_model("llama", torch.float32)
    for name in ("ia3", "prompt_tuning", "lora"):
        attach(several, METHOD_CONFIGS[name], name=name)
    folders["together"] = save_adapter(several, root / "together")
    return folders


class Fuzzer:
    """Opens mutated adapters on one model, and counts the outcomes.

    Attributes:
        outcomes: number of inputs by kind of error, or "opened".
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.sound = sound_adapters(root / "sound")
        self.folder, self.out = root / "mutated", root / "out"
        self.model = tiny_model("llama", torch.float32)
        self.before = observable_state(self.model)
        self.outcomes: Counter[str] = Counter()

    def run(self, count: int) -> float:
        """Open `count` mutated adapters, and return by how many MiB the peak memory of the process grew."""
        self.open_one(lambda _: None)  # imports, caches
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            mutate = Fuzzer.exponential_expression if number % 500 == 499 else self.random.choice(MUTATIONS)
            self.open_one(lambda folder, mutate=mutate: mutate(self, folder))
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024

    def open_one(self, mutate) -> None:
        """Mutate a copy of a sound adapter and open it: only our errors may come, and the model may not change."""
        state = self.random.getstate()
        shutil.rmtree(self.folder, ignore_errors=True)
        name = self.random.choice(list(self.sound))
        shutil.copytree(self.sound[name], self.folder)
        folder = self.folder / "lora" if name == "together" else self.folder
        state_of_notes = self.random.choice(["sealed", "without checksums", "without checksums", "missing"])
        if state_of_notes == "without checksums":
            without_checksums(folder)
        elif state_of_notes == "missing" and folder == self.folder:
            (folder / NOTES).unlink()
        mutate(folder)
        opener = self.random.choice([self.load, self.load, self.load, self.inspect, self.export])
        try:
            opener()
            text = outcome = "opened"
        except PeftlyError as error:
            text, outcome = str(error), kind_of(error, self.folder)
        except BaseException as error:
            raise AssertionError(f"{mutate} of {name} with random state {hash(state)}: {error!r}") from error
        assert text.isprintable(), repr(text)  # in one line, and without terminal escapes
        assert len(text) < 3000, text
        self.outcomes[outcome] += 1
        assert observable_state(self.model) == self.before

    def load(self) -> None:
        """Load the adapter on the model, and take it off again."""
        detach(load_adapter(self.model, self.folder))

    def inspect(self) -> None:
        """Read all facts of the adapters that need no base."""
        opened = open_adapters(self.folder)
        _ = opened.requirements, opened.quantization, opened.row_format
        for folder in opened.folders.values():
            _ = folder.labels, folder.shapes(), folder.tensors(), folder.training_tensors()

    def export(self) -> None:
        """Write the adapter for another tool."""
        export(self.folder, self.random.choice(["peft", "vllm"]), self.out, overwrite=True)

    def file(self, folder: Path, names=()) -> Path:
        """Return one file of the adapter, of those in `names`."""
        return self.random.choice([path for path in sorted(folder.iterdir()) if path.name in names or not names])

    def flip_bytes(self, folder: Path) -> None:
        path = self.file(folder)
        content = bytearray(path.read_bytes())
        for _ in range(self.random.choice([1, 1, 2, 50])):
            # The first bytes more often: the header of a file with tensors.
            end = len(content) if self.random.random() < 0.5 else min(len(content), 600)
            content[self.random.randrange(end)] = self.random.randrange(256)
        path.write_bytes(content)

    def truncate(self, folder: Path) -> None:
        path = self.file(folder)
        path.write_bytes(path.read_bytes()[: self.random.choice([0, 1, 8, self.random.randrange(path.stat().st_size)])])

    def append(self, folder: Path) -> None:
        path = self.file(folder)
        path.write_bytes(path.read_bytes() + self.random.randbytes(self.random.choice([1, 8, 1000])))

    def garbage(self, folder: Path) -> None:
        self.file(folder).write_bytes(self.random.randbytes(self.random.choice([1, 8, 1000])))

    def delete(self, folder: Path) -> None:
        path = self.file(folder)
        path.unlink()
        if self.random.random() < 0.3:
            path.mkdir()

    def swap_file(self, folder: Path) -> None:
        other = self.file(self.random.choice([path for name, path in self.sound.items() if name != "together"]))
        shutil.copy(other, folder / (self.file(folder, TENSOR_FILES) if other.suffix != ".json" else other).name)

    def json_value(self, folder: Path) -> None:
        """Replace, add or delete entries of a JSON file, on any level."""
        path = self.file(folder, JSON_FILES)
        content = json.loads(path.read_text())
        for _ in range(self.random.choice([1, 1, 1, 3])):
            parent = content
            while True:
                key = self.random.choice([*parent, *(key for key in SETTINGS if key in parent)] or ["new\nkey"])
                child = parent.get(key)
                if not (isinstance(child, dict) and self.random.random() < 0.8):
                    break
                parent = child
            if self.random.random() < 0.1:
                parent.pop(key, None)
            else:
                parent[key if self.random.random() < 0.95 else "new\nkey"] = copy.deepcopy(self.random.choice(VALUES))
        path.write_text(json.dumps(content))

    def json_text(self, folder: Path) -> None:
        """Replace a value by a text that is no usual JSON: nested deeply, a huge number, a duplicate key."""
        path = self.file(folder, JSON_FILES)
        text = path.read_text()
        values = list(re.finditer(r": (null|true|false|[\d.]+|\"[^\"]*\")", text))
        start, end = self.random.choice(values).span(1)
        path.write_text(text[:start] + self.random.choice([*TEXTS, '1, "peft_type": "LORA"']) + text[end:])

    def header(self, folder: Path) -> None:
        """Change the header of a file with tensors: shapes, types, offsets, names."""
        path = self.file(folder, TENSOR_FILES)
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        name = self.random.choice([name for name in header if name != "__metadata__"])
        entry, numbers = header[name], [0, 1, 2, 10**6, 10**12, 2**62, 2**63, 2**64, -1, 1.5, None, "3"]
        change = self.random.randrange(6)
        if change == 0:
            entry["shape"] = [self.random.choice(numbers) for _ in range(self.random.randrange(4))]
        elif change == 1:
            entry["shape"] = self.random.choice([entry["shape"][::-1], [*entry["shape"], 1], [10**12, 0], "x"])
        elif change == 2:
            entry["dtype"] = self.random.choice(
                ["I32", "F16", "U8", "BOOL", "F64", "F8_E4M3", "F4", "F8_E8M0", "C64", "X", 3]
            )
        elif change == 3:
            entry["data_offsets"] = [self.random.choice([*numbers, *entry["data_offsets"]]) for _ in range(2)]
        elif change == 4:
            header[self.random.choice(["a\nb\x1b", "", name.upper(), "é" * 5000])] = header.pop(name)
        else:
            del header[name]
        encoded = json.dumps(header).encode()
        length = self.random.choice([len(encoded)] * 9 + [2**63, 2**64 - 1, 10**8 + 1, 0])
        path.write_bytes(struct.pack("<Q", length) + encoded + content[8 + struct.unpack("<Q", content[:8])[0] :])

    def tensor_values(self, folder: Path) -> None:
        """Change the tensors themselves, in a sound file."""
        path = self.file(folder, TENSOR_FILES)
        tensors = load_file(path)
        name = self.random.choice(list(tensors))
        change = self.random.choice([
            lambda tensor: tensor.fill_(float("nan")),
            lambda tensor: tensor.fill_(float("inf")),
            lambda tensor: tensor[:0],
            lambda tensor: torch.cat([tensor, tensor]),
            lambda tensor: tensor[None],
            lambda tensor: tensor.half(),
            lambda tensor: tensor.long(),
            lambda tensor: torch.zeros(()),
        ])  # fmt: skip
        tensors[name] = change(tensors[name])
        if self.random.random() < 0.2:
            tensors[f"base_model.model.{name}.base_layer.weight"] = torch.ones(2)
        save_file(tensors, path)

    def exponential_expression(self, folder: Path) -> None:
        (folder / NOTES).unlink(missing_ok=True)
        path = folder / CONFIG
        key = self.random.choice(["target_modules", "feedforward_modules", "rank_pattern"])
        value = {EXPONENTIAL: 2} if key == "rank_pattern" else EXPONENTIAL
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


MUTATIONS = (
    *[Fuzzer.json_value] * 6,
    *[Fuzzer.header] * 4,
    Fuzzer.flip_bytes,
    Fuzzer.flip_bytes,
    Fuzzer.tensor_values,
    Fuzzer.tensor_values,
    Fuzzer.swap_file,
    Fuzzer.json_text,
    Fuzzer.json_text,
    Fuzzer.truncate,
    Fuzzer.append,
    Fuzzer.garbage,
    Fuzzer.delete,
)

KINDS = (
    "cannot be read as JSON", "nested deeper", "should hold a JSON object", "holds no adapter", "has no adapter_model",
    "is not the file that", "was changed after", "checksums are incomplete", "disagree", "does not describe",
    "not a sound", "peftly reads", "names no", "should be a", "is damaged", "NaN or infinite", "does not fit",
    "do not fit", "many more elements", "no known quantisation", "saved together", "cannot be exported",
    "cannot read", "several adapters", "of another base", "no regular expression", "too large", "takes longer",
)  # fmt: skip


def kind_of(error: PeftlyError, folder: Path) -> str:
    """Return the kind of an error, to count them."""
    text = str(error).replace(str(folder), "FOLDER")
    return next((kind for kind in KINDS if kind in text), f"{type(error).__name__}: {text[:60]}")
