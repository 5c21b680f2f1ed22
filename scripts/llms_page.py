"""Write docs/llms.txt: the pages of the documentation with their first sentence, for programs that read them.

    make reference

The form is that of llmstxt.org. The order is that of the site's navigation.
"""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FILE = DOCS / "llms.txt"
HEADER = """# peftly

> Parameter-efficient fine-tuning of language models (soft prompts, adapters, LoRA, DoRA, QLoRA, (IA)³): a Python
> package and a command line, from raw data to an adapter in the format of Hugging Face PEFT. Begin with agents.md,
> which has the commands, the settings and the usual mistakes. Each page is also there in Chinese (NAME.zh.md).
"""


def navigation() -> list[Any]:
    """Return the navigation of mkdocs.yml."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    part = text[text.index("nav:") : text.index("\ntheme:")]
    navigation: list[Any] = yaml.safe_load(part)["nav"]
    return navigation


def entry(name: str) -> str:
    """Return the line of a page."""
    text = (DOCS / name).read_text(encoding="utf-8")
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    title, *paragraphs = re.split(r"\n\s*\n", text.strip())
    first = next(part for part in paragraphs if re.match(r"[A-Z`*(]", part) and not part.startswith("```"))
    sentence = re.split(r"(?<=\.)\s", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(first.split())))[0]
    return f"- [{title.removeprefix('# ')}]({name}): {sentence}"


def lines(entries: list[Any]) -> list[str]:
    """Return the lines of a part of the navigation."""
    found = []
    for one in entries:
        if isinstance(one, str):
            found += [] if one == "index.md" else [entry(one)]
            continue
        ((title, parts),) = one.items()
        found += ["", f"## {title}", ""] if any(isinstance(part, str) for part in parts) else []
        found += lines(parts)
    return found


def text() -> str:
    """Return the content of the file."""
    return HEADER + "\n".join(lines(navigation())) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
