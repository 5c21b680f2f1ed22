"""Random hostile inputs: configurations, data files and chat templates, each a function of one seed."""

import csv
import io
import json
import math
from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet

TEXTS = [
    *(
        "hello",
        "a b c",
        "",
        " ",
        "\n",
        "é漢字😀",
        "\0",
        "\x1b[2J",
        "[/]",
        "{text}",
        "{",
        "}}",
        "'",
        '"',
        "\u2028",
        "\u202e",
    ),
    *("x" * 2000, "NaN", "null", "true", "-1", "<|im_end|>", "=1+1", "\ufeff", "\r\n", "a,b;c\td", "\\", "%s", "${x}"),
]
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, math.inf, -math.inf, math.nan]
FIELDS = [
    "text",
    "label",
    "prompt",
    "completion",
    "messages",
    "instruction",
    "output",
    "tokens",
    "tags",
    "",
    "a b",
    "x",
]


def mutated(random: Random, content: bytes) -> bytes:
    """Return a content in which some bytes were changed, left out, repeated or added."""
    changed = bytearray(content)
    for _ in range(random.choice([0, 0, 0, 0, 0, 0, 1, 1, 2, 5, 20])):
        position, length = random.randrange(len(changed) + 1), random.choice([1, 1, 2, 8, 100])
        piece = changed[position : position + length]
        new = random.choice(
            [
                b"",
                bytes(random.randrange(256) for _ in range(length)),
                piece * 2,
                b"\0",
                b"\n",
                b'"',
                b"[",
                b"{",
                b"\xff",
            ]
        )
        changed[position : position + random.choice([0, length])] = new
    return bytes(changed[: random.randrange(len(changed) + 1)] if random.random() < 0.03 else changed)


def value(random: Random, depth: int = 0) -> Any:
    """Return a JSON value."""
    kind = random.random()
    if kind < 0.5 or depth > 3:
        return random.choice(TEXTS)
    if kind < 0.7:
        return random.choice([*NUMBERS, True, False, None])
    inner = [value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind < 0.8:
        return inner
    if kind < 0.9:
        return {random.choice([*FIELDS, "role", "content", "from", "value"]): element for element in inner}
    roles = ["user", "assistant", "system", "tool", random.choice(TEXTS)]
    return [{"role": random.choice(roles), "content": random.choice(TEXTS)} for _ in range(random.randrange(5))]


def rows(random: Random) -> list[dict[str, Any]]:
    """Return rows, most of which have the same two or three fields, and most of the values of a field one kind."""
    fields = random.choice(
        [["text", "label"], ["prompt", "completion"], ["messages"], ["tokens", "tags"], random.sample(FIELDS, 3)]
    )
    sound = {
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}],
        "tokens": ["a", "b"],
        "tags": ["O", "B-X"],
    }
    made = []
    for number in range(random.choice([0, 1, 4, 5, 12])):
        row = {field: sound.get(field, f"{field} {number % 2}") for field in fields}
        if random.random() < 0.08:
            row[random.choice([*fields, *FIELDS])] = value(random)
        if random.random() < 0.02:
            row.pop(random.choice(list(row)))
        made.append(row)
    return made


def json_lines_file(random: Random) -> bytes:
    text = "\n".join(json.dumps(row, ensure_ascii=random.random() < 0.5) for row in rows(random))
    return mutated(random, random.choice(["", "", "\ufeff"]).encode() + text.encode())


def json_file(random: Random) -> bytes:
    content: Any = random.choice([rows(random), {"data": rows(random)}, value(random), [value(random)]])
    text = json.dumps(content, indent=random.choice([None, 1]))
    if random.random() < 0.03:
        text = random.choice(
            ["[" * 100_000, '{"a":' * 50_000, "9" * 20_000, '{"data": [' + "1" * 5000 + "]}", "[[]]", "{}"]
        )
    return mutated(random, text.encode())


def csv_file(random: Random, delimiter: str = ",") -> bytes:
    made = rows(random)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=random.choice(["\n", "\r\n", "\r"]))
    writer.writerow(list(made[0]) if made else random.sample(FIELDS, 2))
    for row in made:
        writer.writerow([str(part) for part in row.values()])
    return mutated(random, text.getvalue().encode())


def tsv_file(random: Random) -> bytes:
    return csv_file(random, "\t")


_COLUMNS: list[tuple[list[Any], pa.DataType]] = [
    (["a", "b", None], pa.string()),
    (["a", "b", "a"], pa.dictionary(pa.int32(), pa.string())),
    (["a", "b", "a"], pa.large_string()),
    ([b"a", b"\xff", None], pa.binary()),
    ([1, 2, None], pa.int64()),
    ([1.0, math.nan, None], pa.float64()),
    ([True, False, None], pa.bool_()),
    ([Decimal("1.5"), None, Decimal("2.5")], pa.decimal128(10, 2)),
    ([0, 10**9, None], pa.date32()),
    ([0, 2**62, None], pa.timestamp("ns")),
    ([0, -(2**62), None], pa.timestamp("us", tz="UTC")),
    ([0, 1, 2], pa.duration("s")),
    ([["a"], [], None], pa.list_(pa.string())),
    ([{"a": 1}, {"a": None}, None], pa.struct([("a", pa.int64())])),
    ([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    ([None, None, None], pa.null()),
]


_SOUND: tuple[list[Any], pa.DataType] = (["a", "b", "c"], pa.string())


def parquet_file(random: Random) -> bytes:
    columns = [random.choice(_COLUMNS) for _ in range(random.choice([0, 1, 2, 3]))]
    names = [random.choice(FIELDS) for _ in columns]  # names can be equal
    if random.random() < 0.5:
        columns, names = [_COLUMNS[0], random.choice(_COLUMNS), _SOUND, _SOUND], ["x", "text", "prompt", "completion"]
    arrays = [pa.array(values, kind) for values, kind in columns]
    table = pa.table(arrays, names=names) if arrays else pa.table({})
    if random.random() < 0.3:
        notes = random.choice(
            [b"", b"{", b"[]", b"null", b'{"info": 1}', b'{"info": {"features": {"label": {"names": 1}}}}']
        )
        table = table.replace_schema_metadata({b"huggingface": notes})
    if random.random() < 0.2:
        table = table.slice(0, 0)
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content, compression=random.choice(["none", "snappy", "gzip"]))
    return mutated(random, content.getvalue())


DATA_FILES: dict[str, Callable[[Random], bytes]] = {
    "jsonl": json_lines_file,
    "json": json_file,
    "csv": csv_file,
    "tsv": tsv_file,
    "parquet": parquet_file,
}

_YAML = """\
base: b
out: o
data: {train: d, target: t, max_length: 64, validation_fraction: 0.2}
method: {name: lora, rank: 4, alpha: 8, target_modules: [q_proj]}
quantization: nf4
ensemble: 3
train:
  epochs: 2
  learning_rate: 1e-4
  seed: 7
  max_grad_norm: null
"""
_JOBS = """\
base: b
out: o
method: &m {name: prompt_tuning, num_virtual_tokens: 5}
jobs:
  one: {data: {train: a}, train: {seed: 1}}
  two: {data: {train: b}, method: {<<: *m, num_virtual_tokens: 7}}
"""
_YAML_PIECES = [
    *(
        "[",
        "]",
        "{",
        "}",
        ": ",
        "- ",
        "&a ",
        "*a",
        "*m",
        "<<: *m",
        "? ",
        "| ",
        "> ",
        "!!int ",
        "!!python/object:x ",
        "--- ",
        "\t",
    ),
    *(
        "no",
        "on",
        "0o17",
        "0x1f",
        "1_000",
        "1e400",
        ".nan",
        ".inf",
        "-1",
        "2024-01-01",
        "2024-13-45",
        "1:60:60",
        "~",
        "''",
    ),
    *(
        "\n",
        "\n  ",
        "#",
        "%YAML 9.9\n",
        "!!timestamp x",
        "!!binary x",
        "!!set {a}",
        "!!omap [a: 1]",
        "9" * 5000,
        "=",
        "@",
        "`",
    ),
    *("\n" + name + ": 1" for name in ("jobs", "base", "train", "1", "null", "method")),
]


def yaml_text(random: Random) -> bytes:
    text = random.choice([_YAML, _JOBS])
    for _ in range(random.choice([0, 0, 1, 1, 2, 5])):
        position = random.randrange(len(text) + 1)
        text = text[:position] + random.choice(_YAML_PIECES) + text[position + random.choice([0, 0, 1, 5, 20]) :]
    if random.random() < 0.02:
        text = random.choice(["[" * 3000, "a: " * 3000, "- " * 3000, "{" * 3000, "&a [*a]", "&a {b: *a}", "!!int ''"])
    return mutated(random, text.encode())


_EXPRESSIONS = [
    *(
        "messages",
        "messages[0]",
        "message.content",
        "message['role']",
        "'a'",
        "1",
        "0",
        "none",
        "[]",
        "{}",
        "loop.index",
        "x",
    ),
    *(
        "ns.x",
        "bos_token",
        "eos_token",
        "add_generation_prompt",
        "tools",
        "range(3)",
        "range(10**9)",
        "namespace(x=1)",
        "dict(a=1)",
    ),
    *(
        "cycler('a')",
        "lipsum(1)",
        "joiner(',')",
        "raise_exception('no')",
        "strftime_now('%Y')",
        "messages.__class__",
        "caller()",
    ),
    *(
        "m()",
        "self",
        "x.y.z",
        "''.join",
        "messages|length",
        "-2**63",
        "1e400",
        "'\\ud800'",
        "'\\x1b[2J'",
        "[1] * 3",
        "1 // 0",
    ),
]
_FILTERS = [
    *(
        "trim",
        "upper",
        "length",
        "tojson",
        "list",
        "first",
        "last",
        "join(',')",
        "default('d')",
        "int",
        "float",
        "string",
        "sort",
    ),
    *(
        "reverse",
        "safe",
        "escape",
        "e",
        "center(9)",
        "indent(2)",
        "replace('a','b')",
        "map('upper')",
        "select",
        "items",
        "unique",
    ),
    *(
        "map(attribute='content')|join",
        "groupby('role')",
        "batch(2)",
        "slice(2)",
        "wordwrap(3)",
        "format(1)",
        "round",
        "abs",
        "nope",
    ),
    *(
        "dictsort",
        "random",
        "sum",
        "min",
        "truncate(3)",
        "urlize",
        "xmlattr",
        "striptags",
        "attr('__class__')",
        "pprint",
    ),
]
_OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or", "is defined and", "if x else"]
_COSTLY = [
    "{{ 'a' * 10**12 }}",
    "{{ 7 ** (10 ** 9) }}",
    "{{ 'a'|center(10**11) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}",
    "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
]


def _expression(random: Random) -> str:
    text = random.choice(_EXPRESSIONS)
    for _ in range(random.choice([0, 0, 1, 2])):
        text += random.choice(
            [
                f"|{random.choice(_FILTERS)}",
                f" {random.choice(_OPERATORS)} {random.choice(_EXPRESSIONS)}",
                "[0]",
                "[:1]",
                ".x",
                "()",
            ]
        )
    return text


def _body(random: Random, depth: int = 0) -> str:
    pieces = []
    for _ in range(random.choice([1, 1, 2, 3])):
        inner = _body(random, depth + 1) if depth < 3 else "a"
        pieces.append(
            random.choice(
                [
                    "text ",
                    f"{{{{ {_expression(random)} }}}}",
                    f"{{% for message in {_expression(random)} %}}{inner}{{% endfor %}}",
                    f"{{% for message in messages %}}{inner}{{% endfor %}}",
                    f"{{% if {_expression(random)} %}}{inner}{{% else %}}b{{% endif %}}",
                    f"{{% set x = {_expression(random)} %}}",
                    f"{{% set ns.x = {_expression(random)} %}}",
                    f"{{% macro m() %}}{inner}{{% endmacro %}}{{{{ m() }}}}",
                    f"{{% generation %}}{inner}{{% endgeneration %}}",
                    f"{{% filter {random.choice(_FILTERS)} %}}{inner}{{% endfilter %}}",
                    "{% include 'x' %}",
                    "{% break %}",
                    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n",
                ]
            )
        )
    return "".join(pieces)


def chat_template(random: Random) -> str:
    if random.random() < 0.01:
        return random.choice(_COSTLY)
    template = _body(random)
    if random.random() < 0.3:
        template = mutated(random, template.encode()).decode(errors="replace")
    return template or "a"
