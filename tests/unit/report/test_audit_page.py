"""The page of a data audit: complete in itself, and safe against what the data say."""

import json
import re
from html.parser import HTMLParser

from data_tokenizers import family

from peftly.data import load_data
from peftly.report import ShownExample, TokenUnit, example_units, finding_rows, write_audit
from peftly.report.run_page import write_report

TOKENIZER = family("byte_level")
EVIL = "<script>alert(1)</script>\u202e\" onload='x' &amp; {{ 7 * 7 }}"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src") or name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def written(tmp_path, rows, **settings):
    data = load_data(rows, TOKENIZER, validation_fraction=0, **settings)
    shown = [
        ShownExample(f"example {number}", example_units(encoded, TOKENIZER))
        for number, encoded in enumerate(data.train.encoded[:3])
    ]
    found = {(name, finding.kind): shown[:1] for name, finding in data.report.findings[:1]}
    text = write_audit(
        tmp_path / "page.html", data.report, shown, found, title=EVIL, subtitle="causal_lm on tiny"
    ).read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_shows_examples_and_findings_and_runs_nothing_of_the_data(tmp_path):
    rows = [
        {"prompt": EVIL, "completion": "你好世界"},
        {"prompt": "b", "completion": ""},
        {"prompt": "c", "completion": "d"},
    ]
    text, page = written(tmp_path, rows)
    assert "script" not in page.tags
    assert page.links == []
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "\u202e" not in text
    assert "<script>alert(1)</script>⟨202E⟩" in page.text
    assert "{{ 7 * 7 }}" in page.text
    trained = re.findall(r'<span class="unit text trained"[^>]*>([^<]*)</span>', text)
    assert {"你", "好", "世", "界"} <= set(trained)
    assert "ä" not in page.text
    assert "train: 1 × row dropped: its answer is empty" in page.text
    assert 'data-tokens="3">你<' in text
    assert "problem" in page.text
    assert 'class="unit special trained"' in text


def test_the_histogram_marks_the_maximum_length(tmp_path):
    rows = [{"prompt": f"a {number}", "completion": "b " * number} for number in range(1, 40)]
    _, page = written(tmp_path, rows, max_length=30)
    assert "max_length 30: longer examples are truncated" in page.text
    _, page = written(tmp_path, rows, max_length=3000)
    assert "longer examples are truncated" not in page.text


def test_a_page_without_findings(tmp_path):
    _, page = written(tmp_path, [{"prompt": "a", "completion": "b"}])
    assert "The checks found nothing." in page.text


def test_units_of_labels_are_shown_as_they_are(tmp_path):
    data = load_data([{"prompt": "a", "completion": "b"}], TOKENIZER, validation_fraction=0)
    shown = ShownExample("x", [TokenUnit("a", (1,), tag="B-<b>")], [TokenUnit("<b>", kind="label", trained=True)])
    text = write_audit(tmp_path / "a.html", data.report, [shown], {}, title="t", subtitle="s").read_text()
    assert "&lt;b&gt;</span>" in text
    assert "<bdi>B-&lt;b&gt;</bdi>" in text


def test_problems_come_first_and_a_kind_of_a_later_version_is_shown():
    rows = finding_rows(
        {
            "train": {
                "findings": [
                    {"kind": "duplicate", "count": 2, "samples": ["a"]},
                    {"kind": "of a later version", "count": 1, "samples": ["b"]},
                    {"kind": "cut_answer", "count": 1, "samples": ["c"]},
                ]
            },
            "test": {},
        }
    )
    assert [(row["kind"], row["is_problem"]) for row in rows] == [
        ("cut_answer", True),
        ("duplicate", False),
        ("of a later version", False),
    ]


def test_the_page_of_a_run_shows_the_findings(tmp_path):
    (tmp_path / "config.yaml").write_text("base: b\nmethod: {name: lora}\nout: o\n")
    finding = {"kind": "cut_answer", "count": 1, "samples": ["rows.jsonl: line 3: <b>"]}
    content = {"lines": ["a line"], "splits": {"train": {"findings": [finding]}}}
    (tmp_path / "data.json").write_text(json.dumps(content))
    page = Page(write_report(tmp_path).read_text())
    assert "train: 1 × example with an answer that is cut" in page.text
    assert "rows.jsonl: line 3: <b>" in page.text
