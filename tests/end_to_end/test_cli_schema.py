"""`peftly schema`."""

import json

from peftly.runs import config_schema


def test_it_prints_and_writes_the_schema(peftly, tmp_path):
    printed = peftly("schema")
    assert (printed.code, json.loads(printed.out)) == (0, config_schema())
    file = tmp_path / "peftly.schema.json"
    for _ in range(2):  # a schema is replaced
        written = peftly("schema", "--out", file)
        assert (written.code, written.err) == (0, "")
        assert written.out.endswith(f"# yaml-language-server: $schema={file}\n")
        assert file.read_text(encoding="utf-8") == printed.out


def test_it_replaces_no_other_file(peftly, tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text("base: smollm2-135m\n")
    for path, problem in ((run, "is no schema"), (tmp_path, "is a folder"), (tmp_path / "no" / "a.json", "no folder")):
        outcome = peftly("schema", "--out", path)
        assert outcome.code == 2
        assert problem in outcome.err
    assert run.read_text() == "base: smollm2-135m\n"
