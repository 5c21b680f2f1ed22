"""Files that are published with a merged or exported model belong to its base: no link leads out of its folder."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import perturb

from peftly import LoRA, attach, export, load_base, save_adapter, save_merged, trainable_parameters
from peftly.errors import BaseModelError
from peftly.merging.merged_card import copy_licences, merged_card
from peftly.models import resolve_base
from peftly.models.contents import is_inside


@pytest.fixture
def base(tiny_llama_folder, tmp_path):
    return shutil.copytree(tiny_llama_folder, tmp_path / "base")


@pytest.fixture
def key(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "id_rsa").write_text("PRIVATE KEY")
    return tmp_path / "private" / "id_rsa"


def copied(base, tmp_path):
    """Return the line of `copy_licences`, and the contents of the copies by their names."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    line = copy_licences(resolve_base(str(base)), out)
    return line, {file.name: file.read_text() for file in out.iterdir()}


def test_a_licence_that_is_a_link_to_a_key(base, key, tmp_path):
    (base / "LICENSE").symlink_to(key)
    (base / "NOTICE").symlink_to(Path("..") / "private" / "id_rsa")
    (base / "LICENSE.txt").write_text("free")
    (base / "LICENCE").symlink_to("LICENSE.txt")
    line, files = copied(base, tmp_path)
    assert files == {"LICENCE": "free", "LICENSE.txt": "free"}
    assert line == (
        "licence: LICENCE, LICENSE.txt of the base; not copied: LICENSE, NOTICE, a link out of the folder of the base "
        "or above 1 MB"
    )


def test_licences_that_are_no_text(base, tmp_path):
    (base / "LICENSE").write_bytes(b"x" * 1_000_001)
    (base / "NOTICE").mkdir()
    line, files = copied(base, tmp_path)
    assert files == {}
    assert line.startswith("licence: the base has no licence file; not copied: LICENSE, ")


def test_the_snapshots_of_the_hub_are_links_to_their_blobs(tiny_llama_folder, key, tmp_path):
    repository = tmp_path / "hub" / "models--some--base"
    snapshot, blobs, others = repository / "snapshots" / "abc", repository / "blobs", tmp_path / "hub" / "blobs"
    for folder in (snapshot, blobs, others):
        folder.mkdir(parents=True)
    (blobs / "1234").write_text("free")
    (blobs / "5678").symlink_to(key)
    (others / "9").write_text("foreign")
    (snapshot / "LICENSE").symlink_to(Path("../../blobs/1234"))
    (snapshot / "LICENSE.key").symlink_to(Path("../../blobs/5678"))
    (snapshot / "LICENSE.other").symlink_to(others / "9")
    found = {name: is_inside(snapshot / name, snapshot) for name in ("LICENSE", "LICENSE.key", "LICENSE.other")}
    assert found == {"LICENSE": True, "LICENSE.key": False, "LICENSE.other": False}
    plain = tmp_path / "plain" / "snapshots" / "abc"
    plain.mkdir(parents=True)
    (plain / "LICENSE").symlink_to(blobs / "1234")
    assert not is_inside(plain / "LICENSE", plain)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "generation_config.json"])
def test_a_tokenizer_that_is_a_link_to_a_key(name, base, key, tmp_path):
    model = attach(load_base(str(base)).model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    adapter = save_adapter(model, tmp_path / "adapter")
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(key)
    message = (
        rf"base was refused: its {name} is a link to .*private/id_rsa, which would be published with the new model"
    )
    with pytest.raises(BaseModelError, match=message):
        save_merged(adapter, tmp_path / "merged")
    for source in (adapter, base):
        with pytest.raises(BaseModelError, match=message):
            export(str(source), "gguf", tmp_path / "gguf")
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "gguf").exists()


def test_weights_and_files_of_the_hub_may_be_links(base, tmp_path):
    adapter = save_adapter(attach(load_base(str(base)).model, LoRA(rank=2)), tmp_path / "adapter")
    blobs = tmp_path / "models--some--base" / "blobs"
    blobs.mkdir(parents=True)
    for name, target in (("model.safetensors", tmp_path / "weights"), ("tokenizer.json", blobs / "12")):
        shutil.move(base / name, target)
        (base / name).symlink_to(target)
    save_merged(adapter, tmp_path / "merged", force=True)


def test_the_hub_is_asked_once_for_the_card_and_the_licences(base, monkeypatch, tmp_path):
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    (base / "LICENSE").write_text("free")
    asked = []

    def snapshot_download(name, **_):
        asked.append(name)
        return str(base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("peftly.models.files.hub_answers", lambda: True)
    spec = resolve_base("some/base-of-the-hub")
    parity = SimpleNamespace(dtype="float32", rows=list)
    assert "license: mit" in merged_card(spec, ["lora"], [], parity)
    (tmp_path / "out").mkdir()
    assert copy_licences(spec, tmp_path / "out") == "licence: LICENSE of the base"
    assert asked == ["some/base-of-the-hub"]
