"""The site of the documentation: built without a warning, in two languages, with a search for the words of both."""

import json
import os
import re
import subprocess
import sys

import pytest
from page_blocks import DOCS, ROOT

SOUGHT = {
    "": ("soft prompt", "virtual token", "gradient checkpointing", "QLoRA", "twitter_complaints", "HF_ENDPOINT"),
    "zh/": (
        "软提示",
        "硬提示",
        "虚拟标记",
        "低秩适应",
        "合并权重",
        "断点续训",
        "前缀微调",
        "困惑度",
        "损失掩码",
        "命名实体识别",
    ),
}


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_each_page_is_there_in_both_languages(site):
    pages = {
        page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md") if ".zh" not in page.name
    }
    assert len(pages) > 50
    assert [name for name in pages if not (site / name).is_file() or not (site / "zh" / name).is_file()] == []
    home = (site / "zh" / "index.html").read_text(encoding="utf-8")
    assert 'lang="zh"' in home
    assert "我想" in home


def test_formulas_need_no_script(site):
    page = (site / "concepts" / "lora.html").read_text(encoding="utf-8")
    assert "<math" in page
    assert "arithmatex" not in page


def test_nothing_is_fetched_from_other_servers(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?://[^\s\">]+)", page.read_text(encoding="utf-8")
        )
        assert loaded == [], page
        assert "unpkg.com" not in page.read_text(encoding="utf-8"), page


@pytest.mark.parametrize(("prefix", "words"), SOUGHT.items(), ids=["en", "zh"])
def test_the_search_knows_the_words_of_the_tutorials(site, prefix, words):
    text = (site / "search" / "search_index.js").read_text(encoding="utf-8")  # which is read from a folder, too
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    texts = [
        (entry["title"] + entry["text"]).replace("\u200b", "")
        for entry in index["docs"]
        if entry["location"].startswith("zh/") == bool(prefix)
    ]
    assert [word for word in words if not any(word in text for text in texts)] == []
