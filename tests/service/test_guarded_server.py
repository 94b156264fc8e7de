"""A server as operators run it: keys, TLS, JSON logs and traces to a collector, all at once; it generates one reply at a time."""

import json
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from service.audio.decode import decode
from service.audio.raw import encode
from service.gate.keys import key_line, new_key
from service.settings import DEFAULT_MODEL
from tests.javascript import needs_node, run
from tests.serving import Server, serve
from tests.sounds import voice, wav

SECRET = "What the user says is nobody's business."


@dataclass
class Guarded:
    """The server, what is needed to get in, and the spans that it has sent: (trace id, name)."""

    server: Server
    keys: Path
    key: str
    certificate: str
    tls: ssl.SSLContext
    spans: list[tuple[str, str]] = field(default_factory=list)

    def client(self, key: str | None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.server.url, verify=self.tls, headers=headers, timeout=120)

    def log(self) -> list[dict[str, object]]:
        """What the service has logged; libraries in vLLM's processes write to the same stream, in text."""
        return [json.loads(line) for line in self.server.log if line.startswith("{")]


@pytest.fixture(scope="module")
def guarded(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    folder = tmp_path_factory.mktemp("guarded")
    certificate, private = str(folder / "cert.pem"), str(folder / "key.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", private, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    key, keys = new_key(), folder / "keys"
    keys.write_text(key_line("alice", key) + "\n")
    spans: list[tuple[str, str]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in message.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend((span.trace_id.hex(), span.name) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever).start()
    options = ["--keys-file", str(keys), "--ssl-certfile", certificate, "--ssl-keyfile", private, "--max-num-seqs", "1"]
    otel = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    try:
        with serve(official, folder / "cache", *options, "--log-format", "json", env=otel) as server:
            yield Guarded(server, keys, key, certificate, ssl.create_default_context(cafile=certificate), spans)
    finally:
        collector.shutdown()
        collector.server_close()


def ask(client: httpx.Client, seconds: float = 1.0, **headers: str) -> httpx.Response:
    data = {"instruction": SECRET, "max_tokens": "4", "min_tokens": "4"}
    return client.post("/v1/speech", files={"file": wav(voice(seconds))}, data=data, headers=headers)


def test_only_who_has_a_key_gets_in(guarded: Guarded) -> None:
    with guarded.client(guarded.key) as alice, guarded.client(new_key()) as mallory, guarded.client(None) as nobody:
        assert ask(alice).status_code == 200
        assert ask(mallory).status_code == 401
        assert ask(nobody).status_code == 401
        large = nobody.post("/v1/speech", content=bytes(8_000_000))  # the answer comes although nobody reads the body
        assert large.status_code == 401
        assert nobody.get("/ready").json() == {"status": "ready"}


def test_keys_come_and_go_without_a_restart(guarded: Guarded) -> None:
    late = new_key()
    before = guarded.keys.read_text()
    with guarded.client(late) as bob:
        assert bob.get("/v1/models").status_code == 401
        guarded.keys.write_text(before + key_line("bob", late) + "\n")
        assert bob.get("/v1/models").status_code == 200
        (guarded.keys.parent / "next").write_text(before)
        os.replace(guarded.keys.parent / "next", guarded.keys)
        assert bob.get("/v1/models").status_code == 401


def test_who_has_many_generations_waits_for_who_has_few(guarded: Guarded) -> None:
    late = new_key()
    guarded.keys.write_text(guarded.keys.read_text() + key_line("bob", late) + "\n")
    done: list[str] = []
    prompt = {"prompt": "Hi", "max_tokens": 500, "ignore_eos": True}

    def complete(client: httpx.Client, name: str) -> None:
        assert client.post("/v1/completions", json=prompt).status_code == 200
        done.append(name)

    with guarded.client(guarded.key) as alice, guarded.client(late) as bob, ThreadPoolExecutor() as threads:

        def waiting() -> float:
            metrics = alice.get("/metrics").text
            return sum(float(n) for n in re.findall(r"^vllm:num_requests_waiting{.*} (.*)$", metrics, re.MULTILINE))

        many = [threads.submit(complete, alice, "alice") for _ in range(4)]
        guarded.server.wait_for(lambda: waiting() == 3)
        complete(bob, "bob")
        for request in many:
            request.result()
    assert done.index("bob") <= 2  # behind the running one, and behind one more where that has just ended


def test_each_request_is_one_json_line_without_what_was_said(guarded: Guarded) -> None:
    with guarded.client(guarded.key) as alice:
        reply = ask(alice, 1.0, **{"x-request-id": "from-alice"})
    assert reply.headers["x-request-id"] == "from-alice"
    guarded.server.wait_for(lambda: '"from-alice"' in "".join(guarded.server.log))
    (line,) = (line for line in guarded.log() if line["request_id"] == "from-alice")
    assert line["logger"] == "service.access"
    assert (line["endpoint"], line["status"], line["client"]) == ("/v1/speech", 200, "alice")
    assert line["audio_seconds"] == 1.0
    assert (line["prompt_tokens"], line["completion_tokens"]) == (reply.json()["usage"]["prompt_tokens"], 4)
    log = "".join(guarded.server.log)
    assert SECRET not in log
    assert guarded.key not in log
    assert "Ready" in log


def test_a_trace_goes_to_the_collector_with_a_span_for_each_stage(guarded: Guarded) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with guarded.client(guarded.key) as alice:
        ask(alice, 1.7, traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    expected = {"POST /v1/speech", "upload", "decode", "features", "queue", "encode", "prefill", "generate"}

    def names() -> set[str]:
        return {name for trace_id, name in guarded.spans if trace_id == trace}

    guarded.server.wait_for(lambda: "POST /v1/speech" in names())
    assert names() == expected


def talk(guarded: Guarded, *subprotocols: str, query: str = "", **headers: str) -> Any:
    address = f"{guarded.server.url.replace('http', 'ws', 1)}/v1/realtime{query}"
    offered = [Subprotocol(name) for name in subprotocols] or None
    return connect(address, ssl=guarded.tls, subprotocols=offered, additional_headers=headers, open_timeout=60)


def test_a_socket_needs_a_key(guarded: Guarded) -> None:
    """In the header, or from a browser in a subprotocol, which it must not hear back."""
    with talk(guarded, Authorization=f"Bearer {guarded.key}") as socket:
        assert "session.created" in socket.recv(timeout=60)
    with talk(
        guarded, "realtime", f"openai-insecure-api-key.{guarded.key}", Origin="https://elsewhere.example"
    ) as socket:
        assert socket.subprotocol == "realtime"
    for subprotocols in (["realtime", f"openai-insecure-api-key.{new_key()}"], []):
        with pytest.raises(InvalidStatus) as refused, talk(guarded, *subprotocols):
            pass
        assert refused.value.response.status_code == 401


def test_a_key_that_may_be_given_away(guarded: Guarded) -> None:
    """It opens sockets that are set as was asked for, and nothing else."""
    wanted = {"session": {"type": "realtime", "instructions": "Be brief."}, "expires_after": {"seconds": 60}}
    with guarded.client(guarded.key) as alice, guarded.client(None) as nobody:
        assert nobody.post("/v1/realtime/client_secrets", json=wanted).status_code == 401
        wrong = alice.post("/v1/realtime/client_secrets", json={"session": {"instructions": 5}})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "session.instructions")
        torn = alice.post(
            "/v1/realtime/client_secrets",
            content=b'{"session": {"instructions": "\\ud800"}}',
            headers={"content-type": "application/json"},
        )
        assert (torn.status_code, torn.json()["error"]["param"]) == (400, "session")
        lent = alice.post("/v1/realtime/client_secrets", json=wanted).json()
    assert lent["session"]["instructions"] == "Be brief."
    with talk(guarded, "realtime", f"openai-insecure-api-key.{lent['value']}") as socket:
        assert json.loads(socket.recv(timeout=60))["session"]["instructions"] == "Be brief."
    with guarded.client(lent["value"]) as page:
        assert page.get("/v1/models").status_code == 401


@needs_node
def test_the_javascript_client_talks(guarded: Guarded, tmp_path: Path) -> None:
    audio = tmp_path / "speech.wav"
    with (DEFAULT_MODEL.parent / "samples" / "japan.flac").open("rb") as file:
        said = np.concatenate(list(decode(file, max_seconds=60)))
    resampled = np.frombuffer(encode(said, "pcm_s16le", 24000), np.int16)
    audio.write_bytes(wav(np.asarray(resampled / 32768, np.float32), rate=24000))
    run("realtime.test.js", guarded.server, audio, KEY=guarded.key, NODE_EXTRA_CA_CERTS=guarded.certificate)
