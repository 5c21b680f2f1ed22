"""The folder of a run: folders that a run accepts, and files that its replacement deletes and restores."""

import pytest

from peftly.errors import ConfigError
from peftly.runs.folder import adapter_folders, is_finished, part_folders, read_config, run_files
from peftly.runs.replacing import begin_run, check_resumable, check_run_folder, clear_run, finish_run, keep_or_restore
from peftly.utils import MARK, mark_text

CONFIG = "base: b\ndata: {train: d}\nmethod: lora\nout: o\n"


def make_run(out, *names, config=CONFIG, finished=False):
    contents = {"config.yaml": config, MARK: mark_text("a run", finished=finished)}
    for name in (*contents, *names):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(contents.get(name, name))
    return out


def files_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def run(tmp_path):
    """A finished run, with two adapters that were trained together in one of its steps."""
    adapters = ("adapter/adapter_config.json", "step-2/a/adapter_config.json", "step-2/b/adapter_config.json")
    files = ("data.json", "metrics.jsonl", "summary.json", "report.html", *adapters)
    return make_run(tmp_path / "run", *files, finished=True)


def test_a_run_and_its_adapters_lead_to_its_configuration(run):
    assert read_config(run) == read_config(run / "adapter") == read_config(run / "step-2")
    assert read_config(run / "other") is None
    assert [folder.name for folder in adapter_folders(run)] == ["adapter", "step-2"]
    assert run_files(run)[-1] == run / MARK


def test_folders_of_new_runs(run, tmp_path):
    check_run_folder(tmp_path / "new")
    check_run_folder(run, overwrite=True)
    with pytest.raises(ConfigError, match=r"holds a run; choose another folder, or replace it with --overwrite$"):
        check_run_folder(run)
    make_run(run)
    with pytest.raises(ConfigError, match=r"with --overwrite, or continue it: .* train --resume .*run$"):
        check_run_folder(run)
    with pytest.raises(ConfigError, match="holds files that are not part of a run"):
        check_run_folder(tmp_path, overwrite=True)


def test_folders_of_continued_runs(run, tmp_path):
    with pytest.raises(ConfigError, match=r"the run in .* is finished"):
        check_resumable(run)
    make_run(run)
    assert not is_finished(run)
    check_resumable(run)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="holds no run to continue"):
            check_resumable(folder)


def test_a_run_that_has_lost_its_configuration(run):
    make_run(run, "checkpoint-3.safetensors")
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"has lost its config\.yaml; put the file back, or train with --overwrite"):
        check_resumable(run)
    with pytest.raises(ConfigError, match=r"holds a run; .*replace it with --overwrite$"):
        check_run_folder(run)
    check_run_folder(run, overwrite=True)
    begin(run)
    finish_run(run)
    assert files_in(run) == [MARK, "config.yaml", "data.json"]


def test_a_failed_run_with_steps_keeps_its_metrics(tmp_path):
    out = tmp_path / "new"
    begin(out)
    (out / "metrics.jsonl").write_text("a step")
    keep_or_restore(out)
    check_resumable(out)
    assert (out / "metrics.jsonl").read_text() == "a step"


def test_members_continue_together(tmp_path):
    out = make_run(tmp_path / "vote", config=f"{CONFIG}ensemble: 2\n")
    assert part_folders(out) == [out / "member_1", out / "member_2"]
    make_run(out / "member_1", "data.json")
    check_resumable(out)
    with pytest.raises(ConfigError, match=r"one of several runs that continue together: .* --resume .*vote$"):
        check_resumable(out / "member_1")


def test_members_are_known_without_a_configuration(tmp_path):
    out = make_run(tmp_path / "vote", "results.json", config="[")
    (out / MARK).write_text(mark_text("a run", finished=True, parts=["member_1", "../other", 3]))
    make_run(out / "member_1")
    assert part_folders(out) == [out / "member_1"]
    assert {out / "results.json", out / "member_1" / "config.yaml"} <= set(run_files(out))


def test_clearing_spares_files_of_other_origin(run):
    (run / "notes.txt").touch()
    (run / "step-2" / "a" / "thoughts.txt").touch()
    clear_run(run)
    assert files_in(run) == ["notes.txt", "step-2/a/thoughts.txt"]
    assert not (run / "adapter").exists()


def test_a_folder_without_the_mark_is_never_replaced(run):
    """A project with a config.yaml, its rows in data.json and its own report.html."""
    (run / MARK).unlink()
    with pytest.raises(ConfigError, match="holds files that are not part of a run"):
        check_run_folder(run, overwrite=True)
    with pytest.raises(ConfigError, match=r"holds no run to continue; .* a config.yaml and a \.peftly\.json"):
        check_resumable(run)
    before = files_in(run)
    clear_run(run)
    assert files_in(run) == before


@pytest.mark.parametrize("name", ["data.json", "adapter", ".", "adapter/adapter_config.json"])
def test_an_input_of_the_new_run_is_never_replaced(name, run):
    with pytest.raises(
        ConfigError, match=r"the new run reads .*, which is part of the run in .* that it would replace"
    ):
        check_run_folder(run, overwrite=True, inputs=[None, "smollm2-135m", str(run / name)])
    check_run_folder(run, overwrite=True, inputs=[str(run.parent), str(run / "rows.jsonl"), "smollm2-135m"])


def test_files_of_other_origin_in_a_run_folder_are_never_replaced(run):
    """Folders whose names only begin like those of steps, and a file that only runs side by side write."""
    others = ["step-by-step/README.md", "step-best/adapter_config.json", "results.json", "adapter/notes.txt"]
    make_run(run, *others, finished=True)
    assert not {run / name for name in others} & set(run_files(run))
    begin(run)
    make_run(run, "adapter/adapter_config.json")
    keep_or_restore(run)
    assert set(others) <= set(files_in(run))


def begin(out):
    begin_run(out, lambda folder: make_run(folder, "data.json"))


def test_a_new_run_with_an_adapter_replaces_the_earlier_one(run):
    begin(run)
    assert [name for name in files_in(run) if not name.startswith(".peftly-earlier")] == [
        MARK,
        "config.yaml",
        "data.json",
    ]
    make_run(run, "adapter/adapter_config.json")
    keep_or_restore(run)
    assert files_in(run) == [MARK, "adapter/adapter_config.json", "config.yaml", "data.json"]


def test_without_a_new_adapter_the_earlier_run_is_restored(run):
    before = {name: (run / name).read_text() for name in files_in(run)}
    begin(run)
    (run / "step-9").mkdir()
    (run / "step-9" / "README.md").touch()
    (run / "metrics.jsonl").write_text("new")
    keep_or_restore(run)
    assert {name: (run / name).read_text() for name in files_in(run)} == before
    assert is_finished(run)


def test_a_checkpoint_of_the_new_run_keeps_both(run):
    begin(run)
    make_run(run, "checkpoint-3.safetensors")
    keep_or_restore(run)
    check_resumable(run)
    assert (run / "checkpoint-3.safetensors").exists()
    assert any(name.startswith(".peftly-earlier") for name in files_in(run))
    finish_run(run)
    assert files_in(run) == [MARK, "config.yaml", "data.json"]


def test_a_failed_new_run_without_an_earlier_one_leaves_nothing(tmp_path):
    begin(tmp_path / "new")
    keep_or_restore(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_finished_run_are_deleted(run):
    before = files_in(run)
    make_run(run, "checkpoint-5.safetensors", "checkpoint-6.safetensors", "adapter-interrupted/adapter_config.json")
    make_run(run, "adapter-interrupted/mine.txt", ".peftly-earlier/step-1/a", ".peftly-new-x/b", ".git/config")
    finish_run(run)
    assert is_finished(run)
    assert files_in(run) == sorted([*before, ".git/config", "adapter-interrupted/mine.txt"])
