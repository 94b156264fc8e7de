"""A checkpoint in this process, without vLLM: greedy replies, and the next-token distributions given speech and given its transcript."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from cachetools import LRUCache, cached
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from models.checkpoint import Checkpoint
from models.features import split_windows
from models.manifest import AudioSpan, ReadAudio
from models.prompt import Message, Prompt, Speech
from models.training.batches import join_tokens, reply_ids, transcript_message
from models.training.model import divergence, predictions, splice

ROWS_BYTES = 512 << 20  # of recordings that are asked about again


@dataclass(frozen=True)
class TokenAlignment:
    """How alike the LLM predicts the tokens of one continuation; both (tokens,).

    `divergence` is KL(given transcript || given speech) in nats, `agree` whether the likeliest token is the same.
    """

    divergence: Tensor
    agree: Tensor


class LocalModel:
    """A BLSP model that answers by transformers' own generation."""

    def __init__(
        self, checkpoint: Checkpoint, read: ReadAudio, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        self._read = read
        self._embedder = checkpoint.load_embedder(dtype, device)
        self._llm = AutoModelForCausalLM.from_pretrained(checkpoint.llm_alone(), dtype=dtype).to(device).eval()
        ends = self._llm.generation_config.eos_token_id
        self._llm.generation_config = GenerationConfig(eos_token_id=ends)  # its penalties are no part of what is served
        self._prompts = checkpoint.prompt_builder(dtype)
        self._rows = cached(LRUCache(ROWS_BYTES, getsizeof=lambda rows: rows.nbytes))(self._hear)

    def from_text(self, transcripts: Sequence[str], instructions: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy replies to instructions about transcripts."""
        return self._generate(
            [self._text_prompt(*pair) for pair in zip(instructions, transcripts, strict=True)], max_tokens
        )

    def from_speech(self, audio: Sequence[AudioSpan], instructions: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy replies to instructions about recordings."""
        return self._generate(
            [self._speech_prompt(*pair) for pair in zip(instructions, audio, strict=True)], max_tokens
        )

    @torch.inference_mode()
    def align(
        self, audio: Sequence[AudioSpan], transcripts: Sequence[str], continuations: Sequence[str], instruction: str
    ) -> Iterator[TokenAlignment]:
        """Compares, for each continuation, the predictions of its tokens and of its end."""
        replies = [reply_ids(self._prompts.tokenizer, text) for text in continuations]
        teacher = self._predictions([self._text_prompt(instruction, text) for text in transcripts], replies)
        student = self._predictions([self._speech_prompt(instruction, span) for span in audio], replies)
        lengths = [len(reply) for reply in replies]
        for a, b in zip(torch.split(teacher, lengths), torch.split(student, lengths), strict=True):
            yield TokenAlignment(divergence(a, b).cpu(), (a.argmax(-1) == b.argmax(-1)).cpu())

    def _text_prompt(self, instruction: str, transcript: str) -> Prompt:
        return self._prompts.build([transcript_message(instruction, transcript)])

    def _speech_prompt(self, instruction: str, audio: AudioSpan) -> Prompt:
        return self._prompts.build([Message("user", [instruction, Speech(self._rows(audio))])])

    def _hear(self, audio: AudioSpan) -> Tensor:
        """(n, llm_dim), on the CPU; windows of 30 s one after the other, as served."""
        return torch.cat([self._embedder.embed([window])[0] for window in split_windows(self._read(audio))]).cpu()

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Prompt], max_tokens: int) -> list[str]:
        tokenizer = self._prompts.tokenizer
        tokens = join_tokens(prompts, [[] for _ in prompts], side="left")
        ids = self._llm.generate(
            inputs_embeds=self._splice(prompts, tokens.ids, tokens.is_speech),
            attention_mask=tokens.mask.to(self._llm.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids.tolist()]

    def _predictions(self, prompts: Sequence[Prompt], replies: Sequence[list[int]]) -> Tensor:
        """(tokens of all replies, vocabulary)."""
        tokens = join_tokens(prompts, replies)
        embeddings = self._splice(prompts, tokens.ids, tokens.is_speech)
        return predictions(
            self._llm, embeddings, tokens.mask.to(embeddings.device), tokens.labels.to(embeddings.device)
        )

    def _splice(self, prompts: Sequence[Prompt], ids: Tensor, is_speech: Tensor) -> Tensor:
        rows = torch.cat([prompt.rows[~torch.tensor(prompt.is_token)] for prompt in prompts])
        return splice(self._llm, *(t.to(self._llm.device) for t in (ids, is_speech, rows)))
