"""Data sets of the Hub with a configuration and a split, read by the real `datasets` from folders of this machine."""

import json

import datasets
import pytest
from huggingface_hub.hf_api import RepoFile, RepoFolder

from peftly.data import DataConfig, read_data
from peftly.data.hub import HubSource, hub_source
from peftly.data.readers import read
from peftly.errors import ConfigError, DataError

CARD = """---
configs:
- config_name: 推文
  data_files: [{split: train, path: a/train.jsonl}, {split: test, path: a/test.jsonl}]
- config_name: b
  data_files: [{split: train, path: b/train.jsonl}]
---
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set with two configurations, in a folder that stands for its repository on the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peftly.data.hub.hub_answers", lambda: True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "repository"
    for part, count in (("a/train", 20), ("a/test", 4), ("b/train", 6)):
        file = repository / f"{part}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": f"{part} {n}", "label": "x"}) + "\n" for n in range(count)))
    (repository / "README.md").write_text(CARD, encoding="utf-8")
    load_dataset, asked = datasets.load_dataset, []

    def load(name, *arguments, **options):
        asked.append((name, arguments, options))
        options.pop("revision", None)  # a folder has none
        return load_dataset(str(repository), *arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("imdb", HubSource("imdb")),
        ("ought/raft:twitter_complaints", HubSource("ought/raft", "twitter_complaints")),
        ("ought/raft:tw[train[:100]]", HubSource("ought/raft", "tw", "train[:100]")),
        ("someone/x[train[10%:]+test]", HubSource("someone/x", None, "train[10%:]+test")),
        ("someone/x@v1.0:推文[test]", HubSource("someone/x", "推文", "test", "v1.0")),
        ("someone/x@refs/convert/parquet", HubSource("someone/x", None, None, "refs/convert/parquet")),
        ("a/b/c", None),
        ("a/b:", None),
        ("a/b[]", None),
        ("C:/data", None),
        ("a b", None),
    ],
)
def test_the_spelling(text, source):
    assert hub_source(text) == source
    assert source is None or str(source) == text


@pytest.mark.parametrize(
    ("source", "counts"),
    [
        ("someone/tweets:推文", {"train": 20, "test": 4}),
        ("someone/tweets:推文[train]", {"": 20}),
        ("someone/tweets:推文[train[:3]]", {"": 3}),
        ("someone/tweets:推文[train[50%:]]", {"": 10}),
        ("someone/tweets:推文[train+test]", {"": 24}),
        ("someone/tweets@v1:b", {"train": 6}),
    ],
)
def test_configurations_and_splits_are_read(hub, source, counts):
    assert {name: len(rows) for name, rows in read(source).items()} == counts
    name, _, options = hub[0]
    assert name == "someone/tweets"
    assert "trust_remote_code" not in options


def test_a_revision_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peftly.data.hub.hub_answers", lambda: True)
    asked = []
    rows = datasets.Dataset.from_list([{"text": "a"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or rows)
    read("someone/tweets@v1:b[train[:3]]")
    assert asked == [(("someone/tweets", "b"), {"split": "train[:3]", "revision": "v1"})]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("someone/t", "someone/t: name a configuration of the data set, as in 'someone/t:推文'; there are 推文, b"),
        ("someone/t[train]", "as in 'someone/t:推文[train]'; there are 推文, b"),
        ("someone/t:c", "someone/t:c: there is no configuration 'c'; there are 推文, b"),
        ("someone/t:b[dev]", "someone/t:b[dev]: there is no such split; someone/t has train"),
        ("someone/t:b[train[]", "someone/t:b[train[]: train[ is no split; write it as in 'someone/t:b[train[:100]]'"),
    ],
)
def test_what_there_is_is_listed_in_one_line(hub, source, message):
    with pytest.raises(DataError) as caught:
        read(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_with_a_loading_script_is_read_from_its_copy_in_parquet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("peftly.data.hub.hub_answers", lambda: True)
    asked = []

    def load_dataset(name, *arguments, **options):
        asked.append((name, arguments, options))
        if "revision" not in options:
            raise RuntimeError("Dataset scripts are no longer supported, but found raft.py")
        return datasets.DatasetDict(train=datasets.Dataset.from_list([{"text": "a", "label": "b"}]))

    tree = [RepoFolder(path=name, oid="1") for name in ("banking_77", "tweets")]
    tree.append(RepoFile(path="README.md", oid="1", size=1))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_tree", lambda *_, **__: tree)
    rows = read("ought/raft:tweets")["train"]
    assert rows.rows == [{"text": "a", "label": "b"}]
    assert "loading script, which is not run" in rows.notes[0]
    assert asked[1] == ("ought/raft", (), {"data_dir": "tweets", "revision": "refs/convert/parquet"})
    with pytest.raises(DataError, match=r"name a configuration .*'ought/raft:banking_77'; .* banking_77, tweets"):
        read("ought/raft")


def test_a_mapping_in_settings(hub):
    config = DataConfig.model_validate(
        {
            "train": [{"name": "someone/t", "config": "推文", "split": "train[:9]"}, "someone/t:b"],
            "test": {"name": "someone/t", "config": "推文", "split": "test"},
            "validation": "none",
        }
    )
    assert config.train == ("someone/t:推文[train[:9]]", "someone/t:b")
    assert {name: len(rows) for name, rows in read_data(config).rows.items()} == {"train": 15, "test": 4}
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"config": "a"}, "name, config, split, revision, and name is missing"),
        ({"name": "a/b", "subset": "a"}, "and subset is none of these"),
        ({"name": "a/b", "config": "x[y"}, "is no name of a data set on the Hub"),
    ],
)
def test_a_wrong_mapping_is_refused(mapping, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(train=mapping)


def test_a_list_of_ids_is_read_like_a_tuple(hub):
    """A list was taken for rows in memory, unless a file of the name of an id was there."""
    ids = ["someone/tweets:推文[train]", "someone/tweets:b[train]"]
    counts = [len(read_data(source).rows["train"]) for source in (ids, tuple(ids))]
    assert counts == [26, 26]
    with pytest.raises(DataError, match="row 1"):
        read_data(["one", "two"])
