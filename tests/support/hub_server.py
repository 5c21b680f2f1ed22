"""A stand-in for the Hub on this machine: repositories of models in memory, and the requests that clients make."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """State of the Hub.

    Attributes:
        token: token that may write.
        repos: private or not, and the files of each branch, by id.
        commits: id, branch, message, and the names of the added and deleted files of each commit.
        failing: status of the answers to requests whose method and path match an expression.
        requests: methods and paths of all requests.
        blobs: content of uploaded large files, by their SHA-256.
    """

    def __init__(self) -> None:
        self.token = "hf_standin0123456789"
        self.repos: dict[str, dict[str, Any]] = {}
        self.commits: list[tuple[str, str, str, list[str], list[str]]] = []
        self.failing: dict[str, int] = {}
        self.requests: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.url = ""

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repos[repo]["branches"][branch]

    def add(self, repo: str, *, private: bool = False, **files: bytes) -> None:
        self.repos[repo] = {"private": private, "branches": {"main": dict(files)}}


def sha_of(files: dict[str, bytes]) -> str:
    names = b"".join(name.encode() + hashlib.sha1(files[name]).digest() for name in sorted(files))
    return hashlib.sha1(names).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def no_repo(self) -> None:
        self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for expression, status in self.hub.failing.items():
            if re.search(expression, request):
                return self.answer(status, {"error": "refused by the test"})
        writes = self.command not in ("GET", "HEAD") and not path.startswith("/lfs/")
        if writes and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        for expression, function in ROUTES:
            if match := re.fullmatch(expression, request):
                return function(self, body, **match.groupdict())
        return self.answer(404, {"error": f"no route for {request}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - the names of the standard library

    def info(self, _body: bytes, repo: str, branch: str | None = None) -> None:
        known = self.hub.repos.get(repo)
        if known is None or (known["private"] and not self.headers.get("Authorization")):
            return self.no_repo()
        files = next((f for f in known["branches"].values() if sha_of(f) == branch), None)
        files = known["branches"].get(branch or "main") if files is None else files
        if files is None:
            return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        return self.answer(
            200, {"id": repo, "sha": sha_of(files), "private": known["private"], "siblings": siblings, "tags": []}
        )

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        if repo in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo"})
        self.hub.add(repo, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return self.answer(200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def branch(self, _body: bytes, repo: str, branch: str) -> None:
        branches = self.hub.repos[repo]["branches"]
        if branch in branches:
            return self.answer(409, {"error": "Reference already exists"})
        branches[branch] = dict(branches["main"])
        return self.answer(200, {})

    def preupload(self, body: bytes, repo: str, branch: str) -> None:
        large = (".safetensors", ".bin", ".model")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}}
            for one in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def blob(self, body: bytes, oid: str) -> None:
        self.hub.blobs[oid] = body
        self.answer(200)

    def commit(self, body: bytes, repo: str, branch: str) -> None:
        if repo not in self.hub.repos:
            return self.no_repo()
        files, added, deleted, message = self.hub.files(repo, branch), [], [], ""
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
                files.pop(value["path"])
            else:
                added.append(value["path"])
                is_large = entry["key"] == "lfsFile"
                files[value["path"]] = self.hub.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
        self.hub.commits.append((repo, branch, message, sorted(added), sorted(deleted)))
        sha = sha_of(files)
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def resolve(self, _body: bytes, repo: str, branch: str, file: str) -> None:
        known = self.hub.repos.get(repo)
        if known is None:
            return self.no_repo()
        versions = known["branches"].values()
        files = next((f for f in versions if sha_of(f) == branch), known["branches"].get(branch))
        if files is None or file not in files:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        etag = hashlib.sha256(files[file]).hexdigest()
        return self.answer(200, files[file], ETag=f'"{etag}"', X_Repo_Commit=sha_of(files))

    def tree(self, _body: bytes, repo: str, branch: str) -> None:
        known = self.hub.repos.get(repo)
        if known is None:
            return self.no_repo()
        versions = known["branches"].values()
        files = next((f for f in versions if sha_of(f) == branch), known["branches"].get(branch, {}))
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]
        return self.answer(200, entries)


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    (rf"GET /api/models/{REPO}", Handler.info),
    (rf"GET /api/models/{REPO}/revision/(?P<branch>.+)", Handler.info),
    (rf"GET /api/models/{REPO}/tree/(?P<branch>[^/]+)/?", Handler.tree),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", lambda self, _body: self.answer(200, {})),
    (rf"POST /api/models/{REPO}/branch/(?P<branch>.+)", Handler.branch),
    (rf"POST /api/models/{REPO}/preupload/(?P<branch>.+)", Handler.preupload),
    (rf"POST /api/models/{REPO}/commit/(?P<branch>.+)", Handler.commit),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(?P<oid>\w+)", Handler.blob),
    (rf"(GET|HEAD) /{REPO}/resolve/(?P<branch>[^/]+)/(?P<file>.+)", Handler.resolve),
    (r"HEAD /?", lambda self, _body: self.answer(200)),
]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run the stand-in."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
