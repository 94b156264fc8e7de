"""What is served of the page, and how; without a browser."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from service.cli import Serve
from service.gate.keys import key_line, new_key
from service.http.app import create_app
from service.http.page import FILES, PATHS
from service.loading import Service
from service.page import FOLDER
from service.settings import ServeSettings


async def never() -> Service:
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def client(**settings: object) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ServeSettings.model_validate({"model": "tiny"} | settings), never)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
async def test_every_file_says_what_it_is_and_what_it_may_load(path: str) -> None:
    async with client() as http:
        reply = await http.get(path)
    kinds = {"": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "flac": "audio/flac"}
    assert reply.status_code == 200
    assert reply.headers["content-type"].partition(";")[0] == kinds[path.rpartition(".")[2] if "." in path else ""]
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["worker-src"] == "'self'"
    assert not {"unsafe", "http:", "https:", "*"} & set(re.split(r"[ '-]", reply.headers["content-security-policy"]))
    assert reply.headers["permissions-policy"] == "microphone=(self)"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-cache"


async def test_what_a_browser_has_is_not_sent_again() -> None:
    async with client() as http:
        etag = (await http.get("/")).headers["etag"]
        again = await http.get("/", headers={"If-None-Match": etag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert (await http.get("/", headers={"If-None-Match": '"other"'})).status_code == 200
        assert (await http.head("/")).status_code == 200


async def test_the_page_needs_no_key_and_what_is_beside_it_does() -> None:
    async with client(keys=key_line("alice", new_key())) as http:
        assert {(await http.get(path)).status_code for path in PATHS} == {200}
        assert (await http.get("/page/index.html")).status_code == 401
        assert (await http.get("/page/nothing.js")).status_code == 401
        assert (await http.get("/v1/models")).status_code == 401


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/__init__.py", "/page/..%2f..%2fcli.py", "/page/", "/page"])
async def test_nothing_else_is_served(path: str) -> None:
    async with client() as http:
        reply = await http.get(path)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"


async def test_it_is_there_below_the_path_of_a_proxy() -> None:
    async with client(root_path="/speech", keys=key_line("alice", new_key())) as http:
        assert {(await http.get(f"/speech{path}")).status_code for path in PATHS} == {200}


@pytest.mark.parametrize("keys", ["", key_line("alice", new_key())])
async def test_without_the_page_nothing_is_there(keys: str) -> None:
    async with client(page=False, keys=keys) as http:
        assert {(await http.get(path)).status_code for path in PATHS} == {401 if keys else 404}


def test_a_flag_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from service import cli

    ran: list[Serve] = []
    monkeypatch.setattr(Serve, "cli_cmd", ran.append)
    for words in ([], ["--no-page"], ["--page"], ["--no-page", "models/mine"]):
        monkeypatch.setattr("sys.argv", ["blsp", "serve", *words])
        cli.main()
    assert [settings.page for settings in ran] == [True, False, True, False]
    assert ran[-1].model == "models/mine"


def test_its_files_name_only_each_other() -> None:
    """Relative addresses, so that it works below any path, and nothing from elsewhere."""
    for file in [FOLDER / "index.html", *FILES.values()]:
        if file.suffix == ".flac":
            continue
        text = file.read_text()
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|(?:src|href|fetch\(|url\()\s*=?\s*[\"'`]/", text) == []
        for name in re.findall(r"(?:from |import |URL\()\"(?:\./)?([\w-]+\.js)\"|data-file=\"([^\"]+)\"", text):
            assert "".join(name) in FILES
