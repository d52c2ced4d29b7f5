"""A stand-in for Google Cloud Storage on this machine: what clients ask of it, over real HTTP.

The JSON API's buckets, listings, media, multipart and resumable uploads, ranges, deletion and
conditions on generations (https://cloud.google.com/storage/docs/json_api), without accounts. It has
one bucket, called "bucket".
"""

import itertools
import json
import re
import sys
import threading
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit


class Object(NamedTuple):
    content: bytes
    generation: int
    updated: str


class Failure(Exception):
    """Ends a request with a status and headers."""


class Store(ThreadingHTTPServer):
    """The server, which is also what it holds."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}  # id → name, what has come
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()
        self.refuses = 0  # every upload, with this status
        # Where the three clients find it; none looks for an account.
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients break requests off
            super().handle_error(request, client_address)

    def write(self, name, content, **conditions):
        with self.lock:
            self.check(name, conditions)
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self.objects[name] = Object(content, next(self.numbers), now)
            return self.describe(name)

    def names(self, prefix=""):
        return sorted(name for name in list(self.objects) if name.startswith(prefix))

    def check(self, name, conditions):
        """Clients that share an object say which generation of it they have seen; 0 is none."""
        there = self.objects[name].generation if name in self.objects else 0
        if int(conditions.get("ifGenerationMatch", there)) != there:
            raise Failure(412)
        if "ifGenerationNotMatch" in conditions and int(conditions["ifGenerationNotMatch"]) == (
            there
        ):
            raise Failure(304)

    def describe(self, name):
        content, generation, updated = self.objects[name]
        return {
            "kind": "storage#object",
            "id": f"bucket/{name}/{generation}",
            "bucket": "bucket",
            "name": name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "contentType": "application/octet-stream",
            "timeCreated": updated,
            "updated": updated,
            "etag": str(generation),
            "md5Hash": b64encode(md5(content).digest()).decode(),
            "mediaLink": f"{self.url}/download/storage/v1/b/bucket/o/{name}",
        }

    def listing(self, prefix="", delimiter="", maxResults="1000", pageToken="", **_):
        items, prefixes = [], set()
        for name in self.names(prefix):
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            elif name > pageToken:
                items.append(self.describe(name))
        page = items[: int(maxResults)]
        answer = {"kind": "storage#objects", "items": page, "prefixes": sorted(prefixes)}
        return answer | ({"nextPageToken": page[-1]["name"]} if len(items) > len(page) else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Store

    def do_GET(self):
        self.answer(self.get)

    def do_POST(self):
        self.answer(self.upload)

    def do_PUT(self):
        self.answer(self.go_on)

    def do_DELETE(self):
        self.answer(self.delete)

    def answer(self, how):
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = re.fullmatch(
            r"/?(?:/download|/upload|/resumable)?/storage/v1/b/([^/]+)(/o)?(?:/(.+))?", url.path
        )
        try:
            if not found or found[1] != "bucket":
                raise Failure(404)
            self.send(200, *how(found[2] is not None, unquote(found[3] or "")))
        except Failure as failure:
            code, *headers = failure.args
            said = {"error": {"code": code, "message": f"{self.responses[code][0]}: {url.path}"}}
            self.send(code, b"" if code in (304, 308) else said, *headers)

    def send(self, code, content=b"", headers=()):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json", **dict(headers)}
        self.send_response(206 if "Content-Range" in dict(headers) else code)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def get(self, objects, name):
        store = self.server
        with store.lock:
            if not objects:
                return ({"kind": "storage#bucket", "name": "bucket", "id": "bucket"},)
            if not name:
                return (store.listing(**self.query),)
            if name not in store.objects:
                raise Failure(404)
            store.check(name, self.query)
            if self.query.get("alt") != "media":
                return (store.describe(name),)
            content, generation, _ = store.objects[name]
        headers = {"x-goog-generation": str(generation)}
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if part and part[1]:
            start, size = int(part[1]), len(content)
            if start >= size:
                raise Failure(416)
            content = content[start : int(part[2]) + 1 if part[2] else None]
            headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{size}"
        return content, headers

    def upload(self, objects, name):
        store = self.server
        if store.refuses:
            raise Failure(store.refuses)
        if "upload_id" in self.query:
            return self.go_on(objects, name)
        kind = self.query["uploadType"]
        name, content = self.query.get("name"), self.body
        if kind == "multipart":
            boundary = re.search(r"boundary=\"?([^\";]+)", self.headers["Content-Type"])[1].encode()
            _, about, content = content.split(b"--" + boundary, 2)
            content = content.rpartition(b"\n--" + boundary)[0].removesuffix(b"\r")
            about, content = (re.split(rb"\r?\n\r?\n", x, maxsplit=1)[1] for x in (about, content))
            name = name or json.loads(about)["name"]
        if kind == "resumable":
            name = name or json.loads(content)["name"]
            number = str(next(store.numbers))
            store.uploads[number] = name, b""
            to = f"{store.url}/resumable/storage/v1/b/bucket/o?upload_id={number}"
            return {}, {"Location": to}
        return (store.write(name, content, **self.conditions()),)

    def go_on(self, objects, name):
        name, content = self.server.uploads[self.query["upload_id"]]
        content += self.body
        self.server.uploads[self.query["upload_id"]] = name, content
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or int(total) > len(content):
            raise Failure(308, {"Range": f"bytes=0-{len(content) - 1}"})
        return (self.server.write(name, content),)

    def delete(self, objects, name):
        store = self.server
        with store.lock:
            if name not in store.objects:
                raise Failure(404)
            store.check(name, self.query)
            del store.objects[name]
        return ()

    def conditions(self):
        return {key: value for key, value in self.query.items() if key.startswith("ifGeneration")}

    def log_message(self, *_):
        pass
