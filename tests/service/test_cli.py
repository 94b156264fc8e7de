import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.config import BlspConfig
from service.gate.keys import key_line
from service.settings import ServeSettings
from tests.serving import BLSP, Server
from tests.sounds import voice, wav


def blsp(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "200"} | environment
    return subprocess.run([BLSP, *arguments], capture_output=True, text=True, env=env, timeout=200)


COMMANDS = ["serve", "key", "ask", "batch", "bench", "import", "init", "continue", "align", "evaluate", "instruct"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str) -> None:
    done = blsp(*command.split(), "--help")
    assert done.returncode == 0
    assert "usage: blsp" in done.stdout


def test_init_makes_a_checkpoint_of_the_given_sizes(tmp_path: Path) -> None:
    options = ["--conv-kernel-sizes", "[3,3]", "--padding", "30s", "--prompt-format", "chat-template"]
    assert blsp("init", tmp_path / "made", *options).returncode == 0
    config = BlspConfig.read(tmp_path / "made")
    assert (config.adapter.conv_kernel_sizes, config.padding, config.prompt_format) == ((3, 3), "30s", "chat-template")


def test_import_converts_an_official_checkpoint(official: Path, tmp_path: Path) -> None:
    done = blsp("import", official, tmp_path / "made")
    assert done.returncode == 0
    assert BlspConfig.read(tmp_path / "made").adapter.conv_kernel_sizes == (5, 3, 7)


@pytest.mark.parametrize("command", ["import", "init"])
def test_nothing_is_overwritten(official: Path, tmp_path: Path, command: str) -> None:
    done = blsp(command, *([official] if command == "import" else []), tmp_path)
    assert done.returncode == 1
    assert "exists already" in done.stderr


def test_a_checkpoint_that_is_none_is_one_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    done = blsp("serve", tmp_path, "--port", "0")
    assert done.returncode == 1
    assert "blsp: error:" in done.stderr
    assert "model_type" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_line_and_leaves_nothing_in_the_cache(official: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    command: list[str | Path] = [
        "bash",
        "-c",
        'ulimit -f 16; exec "$0" "$@"',
        BLSP,
        "serve",
        official,
        "--cache",
        tmp_path,
        "--port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "blsp: error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_key_prints_a_line_for_the_file_and_the_key_that_goes_with_it() -> None:
    done = blsp("key", "alice")
    assert done.returncode == 0
    key = done.stderr.split()[-1]
    assert done.stdout == key_line("alice", key) + "\n"


def test_a_key_file_with_a_bad_line_is_one_line_and_status_1(official: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice\n")
    done = blsp("serve", official, "--cache", tmp_path, "--port", "0", "--keys-file", tmp_path / "keys")
    assert done.returncode == 1
    assert "blsp: error:" in done.stderr
    assert "keys, line 1 is not 'NAME sha256:…'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_that_nobody_knows_is_named(official: Path, tmp_path: Path) -> None:
    done = blsp("serve", official, "--cache", tmp_path, "--port", "0", "--nonsense", "1")
    assert done.returncode == 1
    assert "blsp: error: vLLM does not take the options --nonsense 1" in done.stderr


def test_settings_come_from_flags_before_the_environment_before_the_file(official: Path, tmp_path: Path) -> None:
    (tmp_path / "blsp.toml").write_text("port = 1\nmax_audio_seconds = 11\ndrain_seconds = 7\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLSP_CONFIG", str(tmp_path / "blsp.toml"))
        patch.setenv("BLSP_PORT", "2")
        patch.setenv("BLSP_MAX_AUDIO_SECONDS", "22")
        settings = ServeSettings(model=str(official), port=3)
    assert (settings.port, settings.max_audio_seconds, settings.drain_seconds) == (3, 22, 7)


def test_ask_answers_on_the_terminal_as_the_server_does(server: Server, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(wav(voice(2.0)))
    options: list[str | Path] = ["--dtype", "float32", "--cache", server.cache, "--max-tokens", "8"]
    done = blsp("ask", tmp_path / "speech.wav", "Hi", "--model", server.checkpoint, *options)
    assert done.returncode == 0, done.stderr
    with server.client() as client:
        reply = client.post(
            "/v1/speech", files={"file": wav(voice(2.0))}, data={"instruction": "Hi", "max_tokens": "8"}
        )
    assert done.stdout == reply.json()["text"] + "\n"


def test_the_garbage_collector_leaves_out_what_was_loaded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(wav(voice(2.0)))
    count = "lambda: print(gc.get_freeze_count(), len(gc.get_objects()))"
    script = f"import atexit, gc; from service.cli import main; atexit.register({count}); main()"
    arguments: list[str | Path] = [
        "ask",
        tmp_path / "speech.wav",
        "--model",
        server.checkpoint,
        "--cache",
        server.cache,
        "--max-tokens",
        "2",
    ]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    left_out, looked_at = map(int, done.stdout.splitlines()[-1].split())
    assert left_out > 10 * looked_at


@pytest.mark.parametrize("options", [["--clients", "2"], ["--api", "chat", "--rate", "50"], ["--realtime", "--repeat"]])
def test_bench_measures_every_request_and_writes_it_down(server: Server, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out.json"
    done = blsp("bench", server.url, "--requests", "4", "--seconds", "0.5", "--tokens", "3", "--json", out, *options)
    assert done.returncode == 0, done.stderr
    assert "first byte sent to first token" in done.stderr
    measured = json.loads(out.read_text())
    assert measured["summary"]["requests"] == 4
    assert measured["summary"]["errors"] == 0
    assert measured["options"]["seconds"] == 0.5
    for sample in measured["requests"]:
        times = [sample["first_sent"], sample["last_sent"], *sample["tokens"], sample["end"]]
        assert times == sorted(times)
        assert (sample["last_sent"] - sample["first_sent"] >= 0.5) == ("--realtime" in options)


def test_bench_shows_what_failed(server: Server) -> None:
    done = blsp("bench", server.url, "--model", "other", "--requests", "2", "--seconds", "0.5")
    assert done.returncode == 1
    assert "2 of 2 failed" in done.stderr
    assert "'other' does not exist" in done.stderr


def test_bench_says_where_there_is_no_server() -> None:
    done = blsp("bench", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "blsp: error: http://127.0.0.1:9 is no server" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_vllm_refuses_is_one_line(official: Path, tmp_path: Path) -> None:
    done = blsp("serve", official, "--cache", tmp_path, "--port", "0", "--tensor-parallel-size", "9999")
    assert done.returncode == 1
    assert "blsp: error: Value error, Total number of attention heads" in done.stderr
    assert "Traceback" not in done.stderr
