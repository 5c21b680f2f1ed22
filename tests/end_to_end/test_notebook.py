"""The notebook of the quickstart runs from top to bottom, with a tiny base, in both languages."""

import ast
import json
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NAMES = ("quickstart.ipynb", "quickstart.zh.ipynb")


def cells(name: str, kind: str) -> list[str]:
    notebook = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def run_cell(source: str, names: dict) -> object:
    """Run the code of a cell, and return the value of its last expression, which a notebook shows."""
    tree = ast.parse(source)
    shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(shown.value), "cell", "eval"), names) if shown else None


def test_the_code_runs_from_top_to_bottom(tiny_llama_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    code = cells(NAMES[0], "code")
    joined = "\n".join(code)
    for step in ("load_base", "load_data", "attach", "train", "evaluate", "generate", "save_adapter", "load"):
        assert f"peftly.{step}(" in joined, step
    shown = []
    for source in code:
        tiny = source.replace('"smollm2-135m"', repr(str(tiny_llama_folder)))
        shown.append(run_cell(re.sub(r"epochs=\d+", "epochs=1", tiny), names))

    out = capsys.readouterr().out
    assert re.search(r"accuracy: \d+\.\d% -> \d+\.\d%\n", out)
    assert "train: 240 rows" in out
    assert (tmp_path / "departments" / "adapter_model.safetensors").is_file()
    answers = [value for source, value in zip(code, shown, strict=True) if "peftly.generate(" in source]
    assert len(answers) == 2
    assert answers[0] == answers[1], "saved and loaded, the adapter gives the same answer"
    assert names["before"].loss != names["after"].loss, "training changed nothing"


def test_both_languages_have_the_same_code_and_no_stored_outputs():
    assert cells(NAMES[0], "code") == cells(NAMES[1], "code")
    english, chinese = (cells(name, "markdown") for name in NAMES)
    assert [re.match("#*", text)[0] for text in english] == [re.match("#*", text)[0] for text in chinese]
    for name in NAMES:
        stored = json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]
        assert [cell["outputs"] for cell in stored if cell["cell_type"] == "code"] == [[]] * len(cells(name, "code"))


def test_the_notebook_has_the_settings_of_the_quickstart():
    from peftly.runs.quickstart import TASKS

    config, training = TASKS["messages"].prompt_tuning
    code = "\n".join(cells(NAMES[0], "code"))
    for setting in ("epochs", "batch_size", "learning_rate"):
        assert float(re.search(rf"{setting}=([\d.e-]+)", code)[1]) == training[setting]
    assert f"num_virtual_tokens={config.num_virtual_tokens}" in code
    assert f"init_text={config.init_text!r}".replace("'", '"') in code
