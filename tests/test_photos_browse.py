"""The local page of an index: what it serves, and what it refuses."""

import base64
import http.client
import io
import json
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from test_photos import ENCODER, folder, index, picture  # noqa: F401

from retrieval_jax.main import main
from retrieval_jax.photos import PhotoIndex
from retrieval_jax.photos.browse import server

HOSTILE = "<img src=x onerror=alert(1)>.png"


@contextmanager
def serving(made):
    """(port, root)"""
    running, address = server(made)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    _, _, host, root, _ = address.split("/")
    assert host.startswith("127.0.0.1:")
    try:
        yield int(host.split(":")[1]), f"/{root}/"
    finally:
        running.shutdown()
        running.server_close()


def request(port, path, body=None, method=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, dict(reply.getheaders()), content


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_pages_thumbnails_and_a_query(index, folder):  # noqa: F811
    with serving(index) as (port, root):
        status, headers, page = request(port, root)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert page.count(b"<circle") == 30
        assert page.count(b"Cluster ") == 5
        for row in (0, 29):
            status, headers, content = request(port, f"{root}thumbnail/{row}")
            with Image.open(io.BytesIO(content)) as image:
                assert (image.format, image.size) == ("JPEG", (160, 160))
        status, _, page = request(port, f"{root}like/3")
        near = index.nearest(index.content.rows[3].astype(np.float32), 24)
        assert (status, page.count(b"<figure")) == (200, len(near.paths))
        status, _, page = request(port, f"{root}cluster/2")
        assert page.count(b"<figure") == len(index.cluster(2).paths)
        status, _, content = request(port, f"{root}query", png(picture(7)))
        found = json.loads(content)
        assert status == 200
        assert found[0]["path"] == str(folder / "1" / "deep" / "07.png")
        assert index.content.photos.paths[found[0]["row"]] == found[0]["path"]
        assert request(port, f"{root}browse.js")[0] == 200


def test_what_is_refused(index):  # noqa: F811
    with serving(index) as (port, root):
        absent = ["", "/", root[:-1], f"{root[:-2]}x/", f"{root}thumbnail/30"]
        absent += [f"{root}{path}" for path in ("thumbnail/-1", "thumbnail/1/2", "like/x", "index")]
        absent += [f"{root}../../etc/passwd", f"{root}thumbnail/../../index.json", f"{root}like/²"]
        for path in absent:
            assert request(port, path.encode("ascii", "replace").decode() or "x")[0] == 404, path
        assert request(port, "/favicon.ico")[::2] == (204, b"")
        assert request(port, root, Host=f"evil.example:{port}")[0] == 404
        assert request(port, f"{root}query", b"x", Origin="http://evil.example")[0] == 404
        assert request(port, f"{root}like/0", b"x")[0] == 404
        assert request(port, root, method="DELETE")[0] == 501
        status, _, content = request(port, f"{root}query", b"no picture")
        assert status == 400
        assert "can't be read" in json.loads(content)["error"]
        huge = {"Content-Length": str(1 << 40)}
        assert request(port, f"{root}query", b"", **huge)[0] == 400
        assert request(port, f"{root}query", b"", **{"Content-Length": "-1"})[0] == 400
        assert request(port, root)[0] == 200


def test_names_are_inert_and_vanished_photos_leave_a_gap(folder, tmp_path):  # noqa: F811
    (folder / "0" / "deep" / "00.png").rename(folder / HOSTILE)
    made, _ = PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    row = made.content.photos.paths.index(str(folder / HOSTILE))
    (folder / HOSTILE).unlink()
    with serving(made) as (port, root):
        for path in ("", f"like/{row}", f"cluster/{made.content.clusters[row]}"):
            assert b"<img src=x" not in request(port, root + path)[2]
        assert request(port, f"{root}thumbnail/{row}")[2] == b""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "70000"], "port 70000 can't be listened on"),
        (["--encoder", "json:loads"], "another encoder"),
    ],
)
def test_bad_input_gets_a_sentence(index, capsys, arguments, sentence):  # noqa: F811
    assert main(["browse", str(index._directory), *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="without Chromium")
def test_in_a_browser(folder, tmp_path):  # noqa: F811
    """Drops a picture, looks at what is found, follows it; nothing may be complained of."""
    sync = pytest.importorskip("playwright.sync_api")
    (folder / "0" / "deep" / "00.png").rename(folder / HOSTILE)
    made, _ = PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    picture(7).save(tmp_path / "asked.jpg")
    drop = """async content => {
        const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "asked.jpg", {type: "image/jpeg"}));
        document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer}));
    }"""
    content = base64.b64encode((tmp_path / "asked.jpg").read_bytes()).decode()
    with serving(made) as (port, root), sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        complaints, asked = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda sent: asked.append(sent.url))
        page.goto(f"http://127.0.0.1:{port}{root}")
        page.evaluate(drop, content)
        page.wait_for_selector("#answer figure")
        first = page.locator("#answer figure").first
        assert str(folder / "1" / "deep" / "07.png") in first.inner_text()
        assert first.locator("img").evaluate("image => image.decode().then(() => true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_input_files("#chooser", str(folder / "notes.txt"))
        sync.expect(page.locator("#status")).to_contain_text("read")
        assert page.locator("#answer figure").count() == 0
        page.locator("svg a").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/like/*")
        assert page.locator("figure").count() == 24
        page.goto(f"http://127.0.0.1:{port}{root}")
        page.screenshot(path=str(tmp_path / "home.png"))
        browser.close()
    # The file that is no picture, whenever the browser says so.
    assert [line for line in complaints if "400 (Bad Request)" not in line] == []
    assert all(url.startswith(f"http://127.0.0.1:{port}{root}") for url in asked)
