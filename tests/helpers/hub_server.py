"""A stand-in for the Hugging Face hub: what its client needs to create a repository, to upload and to download."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Keeps repositories in memory.

    Attributes:
        repositories: by name, whether it is private.
        files: by name of repository, the bytes of each file.
        token: what a client must send to write.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.token = "that of a test"  # noqa: S105
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(self, content: object, code: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body, path = self._body(), urlparse(self.path).path
        if self.headers.get("authorization") != f"Bearer {self.server.token}":
            return self._answer({"error": "no"}, 401)
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            there = name in self.server.repositories
            private = asked.get("private") or asked.get("visibility") == "private"
            self.server.repositories.setdefault(name, bool(private))
            self.server.files.setdefault(name, {})
            return self._answer({"url": f"{self.server.url}/{name}", "error": "exists"}, 409 if there else 200)
        if path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            links = [
                one | {"actions": {"upload": {"href": f"{self.server.url}/objects/{one['oid']}", "header": {}}}}
                for one in asked
            ]
            return self._answer({"transfer": "basic", "objects": links})
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            modes = {True: "lfs", False: "regular"}
            files = json.loads(body)["files"]
            answer = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in files
            ]
            return self._answer({"files": answer})
        if "/commit/" in path:
            self._commit(repository, [json.loads(line) for line in body.splitlines()])
            url = f"{self.server.url}/{repository}/commit/{COMMIT}"
            return self._answer({"success": True, "commitOid": COMMIT, "commitUrl": url})
        return self._answer({"error": "?"}, 404)

    def _commit(self, repository: str, lines: list[dict]) -> None:
        import base64

        files = self.server.files[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlparse(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.server.files.get("/".join(parts[2:4]))
            if files is None:
                return self._answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            if "tree" in parts:
                return self._answer([
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}
                    for name, data in files.items()
                ])  # fmt: skip
            siblings = [{"rfilename": name} for name in files]
            return self._answer({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings})
        if len(parts) > 4 and parts[2] == "resolve":
            data = self.server.files["/".join(parts[:2])][parts[4]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self._answer(data, ETag=etag, X_Repo_Commit=COMMIT, X_Linked_Etag=etag, X_Linked_Size=str(len(data)))
        return self._answer({"error": "?"}, 404)
