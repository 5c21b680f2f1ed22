"""What a killed process left in the folder of a run is completed or deleted, at every depth."""

import pytest

from peftly.adapters import saving
from peftly.models import resolve_base
from peftly.runs.folder import recover_run
from peftly.runs.replacing import begin_run, check_run_folder, clear_run, keep_or_restore
from peftly.utils import MARK, file_changes, folder_lock, mark_text, replacing_files

LOCK = ".peftly.lock"
SCRATCH = ".peftly-new-0123456789abcdef"


@pytest.fixture
def run(tmp_path):
    """An unfinished ensemble. A process was killed while it saved the first adapter of a member."""
    for name, members in (("", "ensemble: 2\n"), ("member_1", ""), ("member_2", "")):
        (tmp_path / "run" / name).mkdir()
        config = f"base: b\ndata: {{train: d}}\nmethod: lora\nout: o\n{members}"
        (tmp_path / "run" / name / "config.yaml").write_text(config)
        (tmp_path / "run" / name / MARK).write_text(mark_text("a run", finished=False))
    for folder in ("member_1", "member_2/adapter"):
        (tmp_path / "run" / folder / SCRATCH).mkdir(parents=True)
        (tmp_path / "run" / folder / LOCK).touch()
    return tmp_path / "run"


def die_at(monkeypatch, change, name):
    """Let the process end before a change of a file."""

    def before_change(made, path):
        if made == change and path.name == name:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(file_changes, "before_change", before_change)


def test_nothing_is_left_in_the_folders_of_members_and_adapters(run):
    recover_run(run)
    assert sorted(path.name for path in run.rglob("*")) == sorted([*[MARK, "config.yaml"] * 3, "member_1", "member_2"])


def test_a_run_that_was_killed_while_saving_can_be_cleared_and_begun_again(run):
    clear_run(run)
    check_run_folder(run)
    assert not run.exists()


def test_a_run_that_is_stopped_while_it_replaces_another_one_restores_it(tmp_path, monkeypatch):
    out = tmp_path / "run"
    files = {"config.yaml": "base: b\ndata: {train: d}\nmethod: lora\nout: o\n", MARK: mark_text("a run")}
    for name, text in {**files, "adapter/adapter_config.json": "{}"}.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def write_header(folder):
        (folder / "config.yaml").write_text(files["config.yaml"])
        (folder / MARK).write_text(mark_text("a run", finished=False))

    die_at(monkeypatch, "move", "adapter_config.json")
    with pytest.raises(KeyboardInterrupt):
        begin_run(out, write_header)
    keep_or_restore(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_killed_merge_is_completed_by_the_next_command_that_opens_it(tmp_path, monkeypatch):
    die_at(monkeypatch, "move", "config.json")
    with pytest.raises(KeyboardInterrupt), replacing_files(tmp_path, markers=("config.json",)) as scratch:
        (scratch / "config.json").write_text("{}")
    assert not (tmp_path / "config.json").exists()
    assert resolve_base(str(tmp_path)).kind == "folder"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_earlier_files_are_listed_when_no_other_process_can_write(tmp_path):
    """Another process saves an adapter between the call and the lock."""
    replaced = saving._replaced(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with replacing_files(tmp_path, deletes=replaced), folder_lock(tmp_path):
        (tmp_path / "README.md").touch()
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_new_folders_are_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(file_changes, "sync", synced.append)
    file_changes.make_folder(tmp_path / "a" / "b")
    assert set(synced) == {tmp_path, tmp_path / "a"}
