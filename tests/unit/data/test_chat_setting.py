"""The setting `chat_template`: where it is read, where it is stored, and where it is used again."""

import json

import pytest
from chatml import PLAIN, chatty, runs

from peftly.data import DataConfig, RowFormat, load_data
from peftly.errors import ConfigError
from peftly.runs.config_file import dump_config, load_config

ROWS = [
    {"messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": "yes"}]} for n in range(3)
]
OWN = PLAIN.replace("{{ message['role'] }}", "<{{ message['role'] }}>").replace("assistant\n{%", "<assistant>\n{%")


@pytest.mark.parametrize("spelling", ["text", "file", "tokenizer_config.json"])
def test_a_template_is_read_from_its_text_or_a_file(spelling, tmp_path):
    setting = OWN if spelling == "text" else str(tmp_path / spelling)
    if spelling == "file":
        (tmp_path / spelling).write_text(OWN)
    elif spelling != "text":
        (tmp_path / spelling).write_text(json.dumps({"chat_template": OWN}))
    tokenizer = chatty(PLAIN)
    data = load_data(ROWS, tokenizer, chat_template=setting)
    assert data.row_format.chat_template == tokenizer.chat_template == OWN
    assert tokenizer.decode(data.train.encoded[0].input_ids).startswith("<|im_start|><user>\nhello")
    assert runs(data.train.encoded[0], tokenizer) == ["yes<|im_end|>"]
    assert RowFormat.from_dict(json.loads(json.dumps(data.row_format.to_dict()))) == data.row_format


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "nor a file with one \\(FileNotFoundError"),
        ("no tags", "holds no chat template"),
        ("\0", "no chat template"),
    ],
)
def test_a_setting_that_is_no_template_is_refused(content, reason, tmp_path):
    path = tmp_path / "file.jinja"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"chat_template=.*{reason}"):
        load_data(ROWS, chatty(PLAIN), chat_template=str(path))


def test_a_run_stores_the_text_and_not_the_path(tmp_path):
    (tmp_path / "own.jinja").write_text(OWN + "\n\t'\" é☃ {# #}")
    flags = {"base": "b", "data": "d.jsonl", "method": "lora", "out": "o", "chat_template": str(tmp_path / "own.jinja")}
    config = load_config(None, flags=flags)
    assert config.data.chat_template == (tmp_path / "own.jinja").read_text()
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml", stored=True) == config


def test_rows_that_are_no_conversations_do_not_use_it():
    tokenizer = chatty(PLAIN)
    data = load_data([{"prompt": f"a {n}", "completion": "b"} for n in range(3)], tokenizer, chat_template=OWN)
    assert data.row_format.chat_template is None
    assert tokenizer.chat_template == PLAIN
    assert "chat_template is not used: the rows are no conversations" in data.report.notes


def test_a_row_format_without_the_setting_has_no_key_for_it():
    assert "chat_template" not in RowFormat("chat", None, "messages").to_dict()
    assert DataConfig(train="x").chat_template is None
