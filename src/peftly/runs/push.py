"""An adapter to the Hub: its files and a card, in one commit."""

import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from peftly.adapters import ADAPTER_FILES, CARD, CONFIG, TOKENIZER_FILES, AdapterSet, open_adapters
from peftly.errors import AdapterError, ConfigError
from peftly.exporting import SavedAdapter, base_notes
from peftly.runs.config import RunConfig, one_run
from peftly.runs.folder import RESULTS, read_config, run_of
from peftly.runs.hub_card import RunFacts, hub_card, read_facts

__all__ = ["Pushed", "push"]

_UPLOADED = (*ADAPTER_FILES, *TOKENIZER_FILES)
_NOT_OF_AN_ADAPTER = {".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", CARD}
"""Files that a repository may hold before the first adapter."""


class Pushed(NamedTuple):
    """Result of a push.

    Attributes:
        repo: Hub id of the repository.
        url: address of the commit; empty if nothing was uploaded.
        files: sizes of the files in bytes, by their names in the repository.
        card: text of the card.
        notes: lines for the user.
    """

    repo: str
    url: str
    files: dict[str, int]
    card: str
    notes: list[str]


def push(
    run: str | Path,
    to: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    base: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload an adapter to the Hub in PEFT's format, with a card about its data, scores, training and use.

    The adapters of an ensemble, or those that were trained together, are each in a folder of their name. All files come
    in one commit, which also deletes files of an earlier adapter there. The token is that of `hf auth login` or of the
    environment variable HF_TOKEN. No file names a local folder.

    Args:
        run: run folder, or folder of an adapter.
        to: Hub id of the repository, which is created if it does not exist.
        private: whether the repository is private. A repository that exists must be so already.
        revision: branch, which is created if it does not exist; None: main.
        message: message of the commit; None: a short one.
        base: Hub id of the base, where the adapter names another one or a local folder.
        dry_run: upload nothing.

    Returns:
        The files and the address of the commit.

    Raises:
        AdapterError: there is no adapter, or it is damaged.
        ConfigError: the id is none, the base is not on the Hub, there is no token, or the Hub refuses the upload.
    """
    _check_id(to)
    config = read_config(Path(run))
    adapters = _adapters(Path(run), config)
    first = next(iter(adapters.values()))
    saved = {
        f"{part}/{name}".strip("/") if len(opened.folders) > 1 else part: SavedAdapter(folder, folder.tensors())
        for part, opened in adapters.items()
        for name, folder in opened.folders.items()
    }
    adapter = next(iter(saved.values()))
    hub_base = _hub_base(base, adapter)
    facts = {part: _facts(Path(run) / part if part else Path(run), config if part == "" else None) for part in adapters}
    votes = config.ensemble.vote if isinstance(config, RunConfig) and config.ensemble is not None else None
    vote_scores = None if votes is None else _vote_scores(Path(run))
    card = hub_card(saved, hub_base, to, facts, votes=votes, vote_scores=vote_scores)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, one in saved.items():
            _stage(one, folder / name, hub_base)
        if len(first.folders) > 1:
            _copy(first.path, folder, TOKENIZER_FILES)
        (folder / CARD).write_text(card, encoding="utf-8")
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        _check_private(folder, names, [Path(run).resolve(), *(opened.path.resolve() for opened in adapters.values())])
        sizes = {name: (folder / name).stat().st_size for name in names}
        notes = [note for note in base_notes(adapter) if base is None]
        if dry_run:
            return Pushed(to, "", sizes, card, notes)
        url = _upload(folder, names, to, private=private, revision=revision, message=message or _message(saved))
    return Pushed(to, url, sizes, card, notes)


def _check_id(to: str) -> None:
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}", to, re.ASCII) and not re.search(r"--|\.\.", to)
    if not is_id or to.endswith((".git", ".", "-")):
        raise ConfigError(f"--to {to}: not the id of a repository on the Hub; write user/name or organization/name")


def _adapters(run: Path, config: object) -> dict[str, AdapterSet]:
    """Return the adapters by their folder in the repository: the members of an ensemble, or one set by the name ""."""
    if isinstance(config, RunConfig) and config.ensemble is not None:
        return {name: open_adapters(run / name) for name in config.parts()}
    if config is not None:
        one_run(config, run)  # type: ignore[arg-type]
    if not run.exists():
        raise AdapterError(f"{run} is no run folder and no folder of an adapter (looked from {Path.cwd()})")
    return {"": open_adapters(run)}


def _facts(folder: Path, config: object) -> RunFacts:
    own = config if isinstance(config, RunConfig) else read_config(folder)
    return read_facts(run_of(folder), own if isinstance(own, RunConfig) else None)


def _vote_scores(folder: Path) -> dict[str, Any] | None:
    """Return the scores of the vote of an ensemble; None if it was not evaluated, or the file is missing or damaged."""
    try:
        rows = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["rows"]
        vote = next(row for row in rows if row["name"] == "ensemble")
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return None
    return {name: value for name, value in vote.items() if value is not None}


def _hub_base(base: str | None, saved: SavedAdapter) -> str:
    """Return the Hub id of the base.

    Raises:
        ConfigError: the base has no name, or is a local folder or file.
    """
    advice = "name it on the Hub: --base organization/name"
    name = base or saved.base
    if name is None:
        raise ConfigError(f"{saved.folder} names no base; {advice}")
    is_local = base is None and Path(name).expanduser().exists()
    if is_local or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.endswith(".gguf"):
        raise ConfigError(f"the base {name} is a folder or file of this machine, which others do not have; {advice}")
    return name


def _stage(saved: SavedAdapter, folder: Path, base: str) -> None:
    """Copy the files of an adapter, which names its base by the Hub id; the card is another one."""
    folder.mkdir(parents=True, exist_ok=True)
    _copy(saved.folder, folder, tuple(name for name in _UPLOADED if name != CARD))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    (folder / CONFIG).write_text(
        json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        content = json.loads(tokenizer.read_text(encoding="utf-8"))
        content.pop("name_or_path", None)  # a local folder
        tokenizer.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _check_private(folder: Path, names: list[str], paths: list[Path]) -> None:
    """Refuse files that hold a path of this machine, or the value of a secret environment variable.

    Raises:
        ConfigError: a file holds such a text.
    """
    secrets = {
        f"the value of {name}": value
        for name, value in os.environ.items()
        if re.search(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", name) and len(value) >= 12
    }
    home = {"your home folder": str(Path.home())} if len(Path.home().parts) > 2 else {}
    host = {"the name of this machine": socket.gethostname()} if "." in socket.gethostname() else {}
    local = {f"the path {path}": str(path) for path in paths}
    texts = {**local, **home, **host, **secrets}
    for name in names:
        content = (folder / name).read_bytes()
        found = next((what for what, text in texts.items() if text.encode() in content), None)
        if found is not None:
            raise ConfigError(f"{name} holds {found}, which is not uploaded; remove it from the settings of the run")


def _message(saved: Mapping[str, SavedAdapter]) -> str:
    methods = ", ".join(dict.fromkeys(adapter.config.name for adapter in saved.values()))
    return f"{methods} by peftly" if len(saved) == 1 else f"{len(saved)} adapters ({methods}) by peftly"


def _upload(folder: Path, names: list[str], to: str, *, private: bool, revision: str | None, message: str) -> str:
    """Upload files in one commit, and return its address.

    Raises:
        ConfigError: there is no token, or the Hub refuses the upload.
    """
    if get_token() is None:
        raise ConfigError("there is no token for the Hub: type hf auth login, or set HF_TOKEN in the environment")
    api = HfApi()
    try:
        present = _prepare(api, to, private=private, revision=revision)
        operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
        operations += [CommitOperationDelete(name) for name in _outdated(present, names)]
        url: str = api.create_commit(to, operations, commit_message=message, revision=revision).commit_url
    except HfHubHTTPError as error:
        raise ConfigError(_refusal(to, error)) from error
    except ConfigError:
        raise
    except ValueError as error:  # of a card that the Hub does not take, or of an upload of large files
        raise ConfigError(f"{to}: the Hub refuses the upload ({_line(error)})") from error
    except Exception as error:  # errors of the client's HTTP library, whichever it is; HF_HUB_OFFLINE raises, too
        raise ConfigError(f"{to}: nothing was uploaded, {api.endpoint} does not answer ({_line(error)})") from error
    return url


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _prepare(api: HfApi, to: str, *, private: bool, revision: str | None) -> list[str]:
    """Create the repository and the branch where they are missing, and return the names of the files there.

    Raises:
        ConfigError: the repository exists, and is public against `private` or holds something else than an adapter.
    """
    try:
        info = api.model_info(to)
    except RepositoryNotFoundError:
        api.create_repo(to, private=private, exist_ok=True)
        present: list[str] = []
    else:
        if private and not info.private:
            raise ConfigError(f"{to} exists and is public: make it private in its settings, or name another repository")
        present = [file.rfilename for file in info.siblings or ()]
        if not any(Path(name).name == CONFIG for name in present) and (other := set(present) - _NOT_OF_AN_ADAPTER):
            raise ConfigError(f"{to} exists and holds no adapter ({min(other)}); name another repository")
    if revision is not None:
        api.create_branch(to, branch=revision, exist_ok=True)
        present = api.list_repo_files(to, revision=revision)
    return present


def _outdated(present: list[str], names: list[str]) -> list[str]:
    """Return the files of an earlier adapter in the repository that the new one does not have."""
    folders = {Path(name).parent for name in present if Path(name).name == CONFIG}
    return [
        name for name in present if name not in names and Path(name).parent in folders and Path(name).name in _UPLOADED
    ]


def _refusal(to: str, error: HfHubHTTPError) -> str:
    """Return a line on an answer of the Hub that is an error."""
    status = error.response.status_code
    reasons = {
        401: "the token is not valid: type hf auth login, or set HF_TOKEN",
        403: f"the token may not write there: use one with write access, and a user or organization of yours in {to}",
        404: "the Hub has no such user or organization, or the token may not see it",
        409: "somebody else changed the repository meanwhile: push again",
        412: "somebody else changed the repository meanwhile: push again",
        413: "the files are too large",
        429: "too many requests: wait a few minutes, and push again",
    }
    reason = reasons.get(status, _line(error))
    return f"{to}: nothing was uploaded (HTTP {status}): {reason}"
