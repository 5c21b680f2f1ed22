"""GGUF files that are damaged in ways that a seed decides."""

import random
import struct
from pathlib import Path

from tiny_gguf import make_model, make_tokenizer

from peftly import load_base
from peftly.errors import BaseModelError
from peftly.exporting.gguf import write_model
from peftly.models import gguf_header

EXTREMES = (0, 1, 2, 7, 31, 2**16, 2**31, 2**32 - 1, 2**32, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def tiny_gguf(file: Path) -> bytes:
    """Write a tiny llama to a GGUF file, and return its bytes."""
    write_model(file, make_model("llama"), make_tokenizer(), "f32", name="tiny")
    return file.read_bytes()


def refusal(file: Path) -> str | None:
    """Open a base, and return the message of our own error; None: it opens."""
    try:
        load_base(str(file), dtype="float32")
    except BaseModelError as error:
        return str(error)
    return None


class DamagedGguf:
    """Damaged versions of a GGUF file.

    Attributes:
        content: bytes of the sound file.
        entries: entries of the metadata and of the tensors, as slices of `content`.
        end: length of the header.
    """

    def __init__(self, content: bytes) -> None:
        reader = gguf_header._Reader(content)
        reader.position = 8
        num_tensors, num_entries = reader.number("Q"), reader.number("Q")
        self.content, self.entries = content, ([], [])
        for entries, count in zip(self.entries, (num_entries, num_tensors), strict=True):
            for _ in range(count):
                start = reader.position
                if entries is self.entries[0]:
                    reader.value(reader.string(2**16))
                else:
                    reader.tensor()
                entries.append(slice(start, reader.position))
        self.end = reader.position

    def of(self, seed: int) -> bytes:
        """Return a damaged file: one to four changes of its bytes, or of its entries with a sound structure."""
        draw = random.Random(seed)
        return self.with_changed_entries(draw) if draw.randrange(2) else self.with_changed_bytes(draw)

    def with_changed_bytes(self, draw: random.Random) -> bytes:
        changed = bytearray(self.content)
        # The vocabulary is most of the header: most changes come before it or behind it.
        vocabulary = self.content.index(b"tokenizer.ggml.tokens")
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            start = draw.choice(
                (draw.randrange(self.end), draw.randrange(vocabulary), self.end - 1 - draw.randrange(1200))
            )
            start, change = min(start, len(changed) - 1), draw.randrange(7)
            if change == 0:
                changed[start] ^= 1 << draw.randrange(8)
            elif change == 1:
                changed[start : start + 8] = struct.pack("<Q", draw.choice(EXTREMES))
            elif change == 2:
                changed[start : start + 4] = struct.pack("<I", draw.choice(EXTREMES) & 0xFFFFFFFF)
            elif change == 3:
                del changed[start : start + draw.choice((1, 4, 8, 100))]
            elif change == 4:
                changed[start:start] = draw.randbytes(draw.choice((1, 4, 8, 100)))
            elif change == 5:
                other = draw.randrange(self.end)
                changed[start : start + 40] = changed[other : other + 40]
            else:
                del changed[draw.choice((start, draw.randrange(1, len(changed)))) :]
                break
        return bytes(changed)

    def with_changed_entries(self, draw: random.Random) -> bytes:
        entries, tensors = ([self.content[entry] for entry in entries] for entries in self.entries)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            listed = draw.choice((entries, entries, tensors))
            number, change = draw.randrange(len(listed)), draw.randrange(4)
            if change == 0:
                del listed[number]
            elif listed is entries:
                (length,) = struct.unpack_from("<Q", listed[number])
                key = listed[number][: 8 + length]
                (other_length,) = struct.unpack_from("<Q", other := draw.choice(entries))
                listed[number] = key + (strange_value(draw) if change < 3 else other[8 + other_length :])
            else:
                listed[number] = self.strange_tensor(listed[number], draw)
        header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)) + b"".join(entries + tensors)
        data = self.content[-(-self.end // 32) * 32 :]
        return header + bytes(-len(header) % 32) + data

    def strange_tensor(self, entry: bytes, draw: random.Random) -> bytes:
        """Return the entry of a tensor with another name, type, offset or shape."""
        (length,) = struct.unpack_from("<Q", entry)
        name, (num_dimensions,) = entry[8 : 8 + length], struct.unpack_from("<I", entry, 8 + length)
        *shape, kind, offset = struct.unpack_from(f"<{num_dimensions}QIQ", entry, 12 + length)
        change = draw.randrange(5)
        if change == 0:
            name = draw.choice((b"", name + b"x", b"output.weight", b"blk.9999999.attn_q.weight", b"rope_freqs.weight"))
        elif change == 1:
            kind = draw.randrange(40)
        elif change == 2:
            offset = draw.choice((0, 32, 64 * draw.randrange(6000)))
        elif change == 3:
            shape.reverse()
        else:
            shape = [draw.choice((1, 2, 64, 96, 320, 10**5)) for _ in range(draw.randrange(5))]
        numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        return struct.pack("<Q", len(name)) + name + numbers


def strange_value(draw: random.Random) -> bytes:
    """Return the bytes of a random value with its type."""
    kind = draw.choice((0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    if kind == 8:
        text = draw.choice(
            (b"", b"llama", b"gpt2", b"qwen2", b"t5", b"\xff\xfe", b"\0", "ü".encode() * 500, b"{" * 9000)
        )
        return struct.pack("<IQ", kind, len(text)) + text
    if kind == 9:
        inner, count = draw.choice((0, 4, 6, 8, 9)), draw.choice((0, 1, 3, 320, 2**60))
        items = b"".join(
            struct.pack("<Q", 3) + b"a b" if inner == 8 else struct.pack(f"<{gguf_header._SCALARS.get(inner, 'Q')}", 1)
            for _ in range(min(count, 320))
        )
        return struct.pack("<IIQ", kind, inner, count) + items
    code = gguf_header._SCALARS[kind]
    value: float = draw.choice((0, 1, 3, 64, 127))
    if code in "IQiq":
        value = draw.choice((*range(9), 63, 320, 1000, 2**20, 2**31 - 1))
    elif code in "fd":
        value = draw.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")))
    return struct.pack(f"<I{code}", kind, value)
