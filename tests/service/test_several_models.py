"""Several models on one engine, through HTTP: four that hear, one by an encoder and one with a LoRA of its own, and the LLM by itself."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from models.checkpoint import Checkpoint, open_checkpoint
from models.lora import merged
from service.audio.raw import encode
from service.gate.keys import key_line, new_key
from tests.checkpoints import add_adapter, add_lora, init
from tests.service.test_speech_api import Reference, expected_ids
from tests.serving import Server, serve
from tests.sounds import voice, wav

INSTRUCTION = "What is said?"
TOKENS = 8


@dataclass
class Several:
    """The server, the folder of its checkpoints, and the keys of an admin and of somebody else."""

    server: Server
    folder: Path
    admin: str
    other: str

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.other if key is None else key}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=120)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    folder = tmp_path_factory.mktemp("several")
    init(folder / "first")
    add_adapter(folder / "second", folder / "first", seed=1)
    init(folder / "third", seed=2, llm_of=folder / "first")
    add_adapter(folder / "tuned", folder / "first", seed=6, lora=True)
    init(folder / "misfit", seed=3)
    (folder / "shop").mkdir()
    add_adapter(folder / "shop" / "late", folder / "first", seed=4)
    add_adapter(folder / "shop" / "damaged", folder / "first", seed=5)
    (folder / "shop" / "damaged" / "adapter.safetensors").write_bytes(b"none")
    add_adapter(folder / "shop" / "tuned", folder / "first", seed=7, lora=True)
    add_adapter(folder / "shop" / "wide", folder / "first", seed=8, lora=True)
    add_lora(folder / "shop" / "wide" / "lora", folder / "first" / "llm", seed=8, rank=9)
    (folder / "shop" / "link").symlink_to(folder / "second")
    admin, other = new_key(), new_key()
    keys = ",".join([key_line("root", admin), key_line("alice", other)])
    adapters = [f"--adapter={name}={folder / name}" for name in ("second", "third", "tuned", "misfit")]
    options = ["--llm-name", "plain", "--keys", keys, "--admins", "root", "--adapter-folder", str(folder / "shop")]
    options += ["--max-num-seqs", "32", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"]
    with serve(folder / "first", tmp_path_factory.mktemp("cache"), *adapters, *options) as server:
        yield Several(server, folder, admin, other)


@pytest.fixture(scope="module")
def alone(several: Several) -> dict[str, Reference]:
    """Each model by itself, without vLLM."""
    checkpoints = {
        name: open_checkpoint(str(several.folder / path), several.server.cache)
        for name, path in {
            **{name: name for name in ("first", "second", "third", "tuned")},
            "late": "shop/late",
        }.items()
    }
    return {name: reference(checkpoint, several.server.cache) for name, checkpoint in checkpoints.items()}


def reference(checkpoint: Checkpoint, cache: Path) -> Reference:
    """A model without vLLM; its LoRA is merged into the LLM."""
    llm = checkpoint.llm if checkpoint.lora is None else merged(checkpoint.llm, checkpoint.lora, cache)
    weights = LlamaForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
    return weights, checkpoint.load_embedder(), checkpoint.prompt_builder(torch.float32)


def ask(client: httpx.Client, model: str | None, audio: bytes, **fields: Any) -> httpx.Response:
    data = {"instruction": INSTRUCTION, "max_tokens": TOKENS, "return_token_ids": True, **fields}
    return client.post("/v1/speech", files={"file": audio}, data=data | ({} if model is None else {"model": model}))


def spoken(audio: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(audio).decode(), "format": "wav"}}


def messages(audio: bytes, text: str = "text") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": text, "text": INSTRUCTION}, spoken(audio)]}]


def test_they_are_listed_and_what_does_not_fit_is_told_by_name(several: Several) -> None:
    with several.client() as client:
        listed = [card["id"] for card in client.get("/v1/models").json()["data"]]
        assert listed == ["first", "plain", "second", "third", "tuned"]
        assert client.get("/v1/models/second").json()["id"] == "second"
        for name in ("misfit", "nope"):
            refused = ask(client, name, wav(voice(1.0)))
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
            assert "this server has 'first', 'plain', 'second', 'third', 'tuned'." in refused.json()["error"]["message"]
            chat = client.post("/v1/chat/completions", json={"model": name, "messages": messages(b"")})
            assert chat.json()["error"]["message"] == refused.json()["error"]["message"]
    assert "The adapter 'misfit' can't be served" in "".join(several.server.log)


def test_each_answers_as_alone_whatever_is_in_its_batch(several: Several, alone: dict[str, Reference]) -> None:
    cases = list(product(["first", "second", "third", "tuned"], [0.7, 2.3, 31.0], range(2)))
    with several.client() as client, ThreadPoolExecutor(len(cases)) as threads:
        replies = [
            threads.submit(ask, client, name, wav(voice(seconds, seed)), temperature=0) for name, seconds, seed in cases
        ]
        told = [reply.result().json() for reply in replies]
    assert [reply["model"] for reply in told] == [name for name, _, _ in cases]
    for (name, seconds, seed), reply in zip(cases, told, strict=True):
        assert reply["token_ids"] == expected_ids(alone[name], seconds, INSTRUCTION, TOKENS, seed), (name, seconds)
    assert len({tuple(reply["token_ids"]) for reply in told}) > len(cases) // 2, "they say different things"


def test_who_names_no_model_gets_the_first(several: Several, alone: dict[str, Reference]) -> None:
    with several.client() as client:
        reply = ask(client, None, wav(voice(1.1))).json()
    assert (reply["model"], reply["token_ids"]) == ("first", expected_ids(alone["first"], 1.1, INSTRUCTION, TOKENS))


def test_a_model_that_is_named_behind_the_recording_or_in_the_query(
    several: Several, alone: dict[str, Reference]
) -> None:
    audio = wav(voice(1.2))
    fields = {"instruction": INSTRUCTION, "max_tokens": str(TOKENS), "return_token_ids": "true"}
    with several.client() as client:
        for name in ("first", "second", "third", "tuned"):
            form: Any = [("file", ("a.wav", audio)), *((k, (None, v)) for k, v in (fields | {"model": name}).items())]
            body = {"input_audio": spoken(audio)["input_audio"], "model": name} | fields
            replies = [
                client.post("/v1/speech", files=form),
                client.post("/v1/speech", content=audio, params=fields | {"model": name}),
                client.post("/v1/speech", json=body),
            ]
            for reply in replies:
                assert reply.json()["model"] == name
                assert reply.json()["token_ids"] == expected_ids(alone[name], 1.2, INSTRUCTION, TOKENS)


@pytest.mark.parametrize("name", ["first", "second", "third", "tuned"])
def test_every_endpoint_asks_the_model_that_is_named(several: Several, name: str) -> None:
    audio = wav(voice(1.4))
    with several.client() as client:
        native = ask(client, name, audio).json()["text"]
        chat = {"model": name, "messages": messages(audio), "max_tokens": TOKENS, "temperature": 0}
        for path in ("/v1/chat/completions", f"/openai/deployments/{name}/chat/completions"):
            reply = client.post(path, json=chat if path.startswith("/v1") else chat | {"model": "plain"}).json()
            assert (reply["model"], reply["choices"][0]["message"]["content"]) == (name, native)
        asked = {"model": name, "input": messages(audio, "input_text"), "max_output_tokens": TOKENS, "temperature": 0}
        reply = client.post("/v1/responses", json=asked).json()
        assert (reply["model"], reply["output"][0]["content"][0]["text"]) == (name, native)
        told = ask(client, name, audio, instruction="Please repeat the words you hear.").json()["text"]
        written = client.post("/v1/audio/transcriptions", files={"file": audio}, data={"model": name}).json()
        assert written["text"].startswith(told.strip())
        told = ask(client, name, audio, instruction="Please translate the following audio into English text.").json()
        written = client.post("/v1/audio/translations", files={"file": audio}, data={"model": name}).json()
        assert written["text"].startswith(told["text"].strip())
        asked = {"model": name, "messages": messages(audio)}
        assert client.post("/tokenize", json=asked).json()["count"] > 20
        text = {"model": name, "prompt": "Hi", "max_tokens": 2}
        assert client.post("/v1/completions", json=text).json()["model"] == name


def talk(several: Several, query: str) -> Any:
    address = f"{several.server.url.replace('http', 'ws', 1)}/v1/realtime{query}"
    return connect(address, additional_headers={"Authorization": f"Bearer {several.other}"}, open_timeout=60)


def answer(socket: Any, audio: Any) -> tuple[str, str]:
    """The model of a session, and what it says to a recording."""
    created = json.loads(socket.recv(timeout=60))
    sound = {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 16000}}
    events: list[dict[str, Any]] = [
        {"type": "session.update", "session": {"audio": {"input": sound}, "max_output_tokens": TOKENS}},
        {"type": "input_audio_buffer.append", "audio": base64.b64encode(encode(audio, "pcm_s16le", 16000)).decode()},
        {"type": "input_audio_buffer.commit"},
        {"type": "response.create"},
    ]
    for event in events:
        socket.send(json.dumps(event))
    told = ""
    while (event := json.loads(socket.recv(timeout=60)))["type"] != "response.done":
        told += event["delta"] if event["type"] == "response.output_text.delta" else ""
    return created["session"]["model"], told


@pytest.mark.parametrize("name", ["first", "second", "tuned"])
def test_a_talk_is_with_the_model_that_is_named(several: Several, name: str) -> None:
    question = {"model": name, "max_tokens": TOKENS, "temperature": 0}
    with several.client() as client, talk(several, f"?model={name}") as socket:
        told = answer(socket, voice(1.6))
        chat = question | {"messages": [{"role": "user", "content": [spoken(wav(voice(1.6)))]}]}
        said = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]
    assert (told[0], told[1].strip()) == (name, said.strip())


def test_a_key_that_is_lent_names_a_model(several: Several) -> None:
    with several.client() as client:
        for session, name in (({"model": "second"}, "second"), ({"model": "gpt-realtime"}, "first")):
            key = client.post("/v1/realtime/client_secrets", json={"session": session}).json()["value"]
            url = f"{several.server.url.replace('http', 'ws', 1)}/v1/realtime"
            with connect(url, additional_headers={"Authorization": f"Bearer {key}"}, open_timeout=60) as socket:
                assert json.loads(socket.recv(timeout=60))["session"]["model"] == name


def test_the_llm_by_itself_reads_and_does_not_hear(several: Several) -> None:
    audio = wav(voice(1.0))
    text = {"messages": [{"role": "user", "content": "How far is it?"}], "max_tokens": TOKENS, "temperature": 0}
    with several.client() as client:
        told = [client.post("/v1/chat/completions", json=text | {"model": name}).json() for name in ("first", "plain")]
        assert [reply["model"] for reply in told] == ["first", "plain"]
        assert told[0]["choices"][0]["message"]["content"] == told[1]["choices"][0]["message"]["content"] != ""
        refusals = [
            ask(client, "plain", audio),
            client.post("/v1/speech", content=audio, params={"model": "plain"}),
            client.post("/v1/speech", files=[("file", ("a", audio)), ("model", (None, "plain"))]),
            client.post("/v1/audio/transcriptions", files={"file": audio}, data={"model": "plain"}),
            client.post("/v1/chat/completions", json={"model": "plain", "messages": messages(audio)}),
            client.post("/v1/responses", json={"model": "plain", "input": messages(audio, "input_text")}),
        ]
    for refused in refusals:
        assert refused.status_code == 400
        assert "'plain' reads text alone" in refused.json()["error"]["message"]
    with pytest.raises(InvalidStatus) as closed, talk(several, "?model=plain"):
        pass
    assert closed.value.response.status_code == 400


def test_only_an_admin_loads_and_unloads(several: Several) -> None:
    wanted = {"name": "late", "path": "late"}
    for key, status, code in ((new_key(), 401, "invalid_api_key"), (several.other, 403, "not_admin")):
        with several.client(key) as client:
            for reply in (client.post("/v1/adapters", json=wanted), client.delete("/v1/adapters/second")):
                assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    with several.client() as client:
        assert client.get("/v1/models/second").status_code == 200


@pytest.mark.parametrize(
    ("name", "path", "status", "why"),
    [
        ("second", "late", 409, "already"),
        ("plain", "late", 409, "already"),
        ("new", "damaged", 400, "The adapter 'new' can't be served"),
        ("new", "wide", 400, "LoRA rank 9 is greater than max_lora_rank 8"),
        ("new", "nowhere", 400, "There is no 'nowhere'"),
        ("new", "../second", 400, "no folder in the folder"),
        ("new", "/", 400, "no folder in the folder"),
        ("new", "link", 400, "no folder in the folder"),
        ("new", "late/config.json", 400, "no folder in the folder"),
        ("new", "a\0b", 400, "There is no"),
        ("new", "x" * 5000, 400, "There is no"),
        ("a/b", "late", 400, "name"),
    ],
)
def test_what_can_not_be_loaded_is_told_and_the_rest_serve(
    several: Several, name: str, path: str, status: int, why: str
) -> None:
    with several.client(several.admin) as admin:
        reply = admin.post("/v1/adapters", json={"name": name, "path": path})
        assert reply.status_code == status
        assert why in reply.json()["error"]["message"]
        assert len(admin.get("/v1/models").json()["data"]) == 5


@pytest.mark.parametrize(("name", "status"), [("first", 400), ("plain", 400), ("nope", 404), ("late", 404)])
def test_what_can_not_be_unloaded(several: Several, name: str, status: int) -> None:
    with several.client(several.admin) as admin:
        assert admin.delete(f"/v1/adapters/{name}").status_code == status
        assert len(admin.get("/v1/models").json()["data"]) == 5


def test_loaded_and_unloaded_while_others_are_answered(several: Several, alone: dict[str, Reference]) -> None:
    """Each time it answers as alone, then is no model; and nobody's request fails."""
    ended = False
    statuses: list[int] = []

    def keep_asking(name: str) -> None:
        with several.client() as client:
            for seed in range(10_000):
                if ended:
                    break
                statuses.append(ask(client, name, wav(voice(0.8, seed))).status_code)

    with several.client(several.admin) as admin, ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(keep_asking, name) for name in ("first", "second", "third", "second")]
        try:
            for seed in range(3):
                loaded = admin.post("/v1/adapters", json={"name": "late", "path": "late"})
                assert (loaded.status_code, loaded.json()["id"]) == (200, "late")
                told = ask(admin, "late", wav(voice(1.3, seed))).json()["token_ids"]
                assert told == expected_ids(alone["late"], 1.3, INSTRUCTION, TOKENS, seed)
                assert admin.delete("/v1/adapters/late").json() == {"id": "late", "object": "model", "deleted": True}
                assert ask(admin, "late", wav(voice(1.3, seed))).status_code == 404
        finally:
            ended = True
        for thread in asking:
            thread.result()
    assert len(statuses) > 4
    assert set(statuses) == {200}


def test_a_lora_goes_with_its_model_and_another_may_come_by_its_name(several: Several) -> None:
    """Nothing that the engine knows of the former is used for the new one, and there is room for it."""
    audio, told = wav(voice(5.0)), []
    with several.client(several.admin) as admin:
        for seed in (7, 8):
            add_lora(several.folder / "shop" / "tuned" / "lora", several.folder / "first" / "llm", seed)
            assert admin.post("/v1/adapters", json={"name": "late", "path": "tuned"}).status_code == 200
            full = admin.post("/v1/adapters", json={"name": "more", "path": "tuned"})
            assert full.status_code == 400
            assert "the engine has 2 LoRAs, as many as it takes" in full.json()["error"]["message"]
            alone = reference(
                open_checkpoint(str(several.folder / "shop" / "tuned"), several.server.cache), several.server.cache
            )
            for _ in range(2):
                told.append(ask(admin, "late", audio).json())
                assert told[-1]["token_ids"] == expected_ids(alone, 5.0, INSTRUCTION, TOKENS)
            assert admin.delete("/v1/adapters/late").status_code == 200
    cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in told]
    assert [bool(tokens) for tokens in cached] == [False, True, False, True]
    assert told[0]["token_ids"] != told[2]["token_ids"]


def test_who_is_being_answered_is_answered_to_the_end(several: Several) -> None:
    with several.client(several.admin) as admin, ThreadPoolExecutor(1) as threads:
        admin.post("/v1/adapters", json={"name": "late", "path": "late"})
        body = {
            "instruction": INSTRUCTION,
            "model": "late",
            "stream": "true",
            "min_tokens": "1000",
            "max_tokens": "1000",
        }
        with admin.stream("POST", "/v1/speech", files={"file": wav(voice(1.0))}, data=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            unloaded = threads.submit(admin.delete, "/v1/adapters/late")
            several.server.wait_for(lambda: ask(admin, "late", wav(voice(1.0))).status_code == 404)
            assert not unloaded.done()
            *_, whole, end = [line for line in lines if line]
        assert unloaded.result().status_code == 200
    assert end == "data: [DONE]"
    assert json.loads(whole.removeprefix("data: "))["usage"]["completion_tokens"] == 1000


def test_metrics_and_the_log_name_the_model(several: Several) -> None:
    with several.client() as client:
        ask(client, "third", wav(voice(1.0)))
    several.server.wait_for(
        lambda: several.server.metric("blsp_requests_total", endpoint="/v1/speech", model="third", status="200") > 0
    )
    assert several.server.metric("blsp_requests_total", model="nope") == 0
    assert "model third" in "".join(several.server.log)
