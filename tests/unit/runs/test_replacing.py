"""The folder of a run: folders that a run accepts, and files that its replacement deletes and restores."""

import pytest

from peftly.errors import ConfigError
from peftly.runs.folder import adapter_folders, is_finished, part_folders, read_config, run_files
from peftly.runs.replacing import check_resumable, check_run_folder, clear_run, drop_leftovers, replacing

CONFIG = "base: b\ndata: {train: d}\nmethod: lora\nout: o\n"


def make_run(out, *names, config=CONFIG):
    for name in ("config.yaml", *names):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(config if name == "config.yaml" else name)
    return out


def files_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def run(tmp_path):
    """A finished run, with two adapters that were trained together in one of its steps."""
    adapters = ("adapter/adapter_config.json", "step-2/a/adapter_config.json", "step-2/b/adapter_config.json")
    return make_run(tmp_path / "run", "data.json", "metrics.jsonl", "summary.json", "report.html", *adapters)


def test_a_run_and_its_adapters_lead_to_its_configuration(run):
    assert read_config(run) == read_config(run / "adapter") == read_config(run / "step-2")
    assert read_config(run / "other") is None
    assert [folder.name for folder in adapter_folders(run)] == ["adapter", "step-2"]
    assert run_files(run)[-1] == run / "config.yaml"


def test_folders_of_new_runs(run, tmp_path):
    check_run_folder(tmp_path / "new")
    check_run_folder(run, overwrite=True)
    with pytest.raises(ConfigError, match=r"holds a run; choose another folder, or replace it with --overwrite$"):
        check_run_folder(run)
    (run / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"with --overwrite, or continue it: .* train --resume .*run$"):
        check_run_folder(run)
    with pytest.raises(ConfigError, match="holds files that are not part of a run"):
        check_run_folder(tmp_path, overwrite=True)


def test_folders_of_continued_runs(run, tmp_path):
    with pytest.raises(ConfigError, match=r"the run in .* is finished"):
        check_resumable(run)
    (run / "checkpoint.safetensors").touch()
    assert not is_finished(run)
    check_resumable(run)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="holds no run to continue"):
            check_resumable(folder)


def test_members_continue_together(tmp_path):
    out = make_run(tmp_path / "vote", config=f"{CONFIG}ensemble: 2\n")
    assert part_folders(out) == [out / "member_1", out / "member_2"]
    make_run(out / "member_1", "data.json")
    check_resumable(out)
    with pytest.raises(ConfigError, match=r"one of several runs that continue together: .* --resume .*vote$"):
        check_resumable(out / "member_1")


def test_clearing_spares_files_of_other_origin(run):
    (run / "notes.txt").touch()
    (run / "step-2" / "a" / "thoughts.txt").touch()
    clear_run(run)
    assert files_in(run) == ["notes.txt", "step-2/a/thoughts.txt"]
    assert not (run / "adapter").exists()


def test_a_new_run_with_an_adapter_replaces_the_earlier_one(run):
    with replacing(run):
        assert not (run / "config.yaml").exists()
        make_run(run, "adapter/adapter_config.json")
    assert files_in(run) == ["adapter/adapter_config.json", "config.yaml"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_without_a_new_adapter_the_earlier_run_is_restored(error, run):
    before = files_in(run)

    def fail():
        with replacing(run):
            make_run(run, "data.json", "step-9/README.md")
            raise error

    with pytest.raises(error):
        fail()
    assert files_in(run) == before
    assert (run / "data.json").read_text() == "data.json"


def test_leftovers_of_a_finished_run_are_deleted(run):
    before = files_in(run)
    make_run(run, "checkpoint.safetensors", "adapter-interrupted/adapter_config.json", ".replaced-x/a", ".step-2-x/b")
    make_run(run, "adapter-interrupted/mine.txt", ".adapter-x/c", ".checkpoint.safetensors-x/d", ".git/config")
    drop_leftovers(run)
    assert files_in(run) == sorted([*before, ".git/config", "adapter-interrupted/mine.txt"])
