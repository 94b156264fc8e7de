"""Builds the demo model from nothing: `python -m models.demo.build [STAGE ...]`, all stages in order by default.

A stage whose output exists is skipped, and one that was killed goes on where it was: run the command again. Work files lie in build/demo.
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from models.demo import compare, continuations, evaluate, export, heldout, train_adapter, train_encoder, train_llm
from models.demo.corpus import Shard, build_shard
from models.demo.preflight import mute_voices
from models.demo.samples import write_samples
from models.demo.tokenizer import build as build_tokenizer
from models.demo.train_adapter import EncodedSpeech

SEED = 1
SHARDS = 60  # of 2,000 utterances
ENCODER_STEPS, LLM_STEPS, ADAPTER_STEPS = 8000, 10000, 3000
COMPARISON_STEPS = 450
ADAPTER_UTTERANCES = 40_000
PROCESSES = 2

WORK = Path("build/demo")
SPEECH, TESTS, STATES = WORK / "shards", WORK / "heldout", WORK / "states"
ENCODER_RUN, LLM_RUN, ADAPTER_RUN = WORK / "encoder.pt", WORK / "llm.pt", WORK / "adapter.pt"
LLM, CONTINUATIONS, RESULTS = WORK / "llm", WORK / "continuations.jsonl", WORK / "results.json"
CHECKPOINT, SAMPLES = Path(__file__).parent / "checkpoint", Path(__file__).parent / "samples"
HUMAN_DIGITS = Path("../shared/audio/human-digits")

logger = logging.getLogger(__name__)


def speech() -> None:
    """Synthesises the training speech; a process makes one shard only, because espeak remembers what it has said before."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, initializer=_set_up, max_tasks_per_child=1) as processes:
        list(processes.map(partial(build_shard, SPEECH, SEED), range(SHARDS)))


def encoder() -> None:
    """Trains the speech encoder."""
    train_encoder.train(SPEECH, ENCODER_RUN, ENCODER_STEPS, SEED)


def llm() -> None:
    """Trains the language model."""
    tokenizer = build_tokenizer()
    model = train_llm.train(tokenizer, LLM_RUN, LLM_STEPS, SEED)
    export.write_llm(LLM, model, tokenizer)


def networks() -> None:
    """Trains encoder and LLM side by side: neither knows of the other."""
    _together([(encoder, ()), (llm, ())])


def continue_texts() -> None:
    """Lets the LLM continue every sentence that the adapter will hear."""
    model, tokenizer = export.read_llm(LLM)
    continuations.write(model, tokenizer, _sentences_spoken(), CONTINUATIONS, SEED)


def _sentences_spoken() -> list[str]:
    """The sentences among the first utterances of the corpus, each once."""
    texts: list[str] = []
    for file in sorted(SPEECH.glob("[0-9]*.npz")):
        shard = Shard.load(file)
        texts += [text for text, sentence in zip(shard.texts, shard.sentences, strict=True) if sentence]
        if len(texts) >= ADAPTER_UTTERANCES:
            break
    return list(dict.fromkeys(texts[:ADAPTER_UTTERANCES]))


def states() -> None:
    """Encodes the adapter's speech once and for all."""
    if not (STATES / "texts.txt").exists():
        train_adapter.encode(_recogniser().encoder, SPEECH, STATES, ADAPTER_UTTERANCES, SEED)


def _recogniser() -> train_encoder.SpeechRecogniser:
    """The trained encoder with its heads."""
    recogniser = train_encoder.SpeechRecogniser()
    recogniser.load_state_dict(torch.load(ENCODER_RUN, weights_only=True)["model"])
    return recogniser.eval()


def adapter() -> None:
    """Trains the adapter and writes the checkpoint."""
    model, tokenizer = export.read_llm(LLM)
    replies = continuations.read(CONTINUATIONS)
    trained = train_adapter.train(
        EncodedSpeech.load(STATES), replies, model, tokenizer, ADAPTER_RUN, ADAPTER_STEPS, SEED
    )
    export.write(CHECKPOINT, _recogniser().encoder, trained, train_adapter.SIZES, model, tokenizer)


def tests() -> None:
    """Records the sentences of the evaluation."""
    heldout.build(TESTS, SEED)


def evaluation() -> None:
    """Measures the checkpoint as it was written; where its training is still there, also the encoder alone and the continuations."""
    encoder = export.read_encoder(CHECKPOINT)
    recogniser = _recogniser() if ENCODER_RUN.exists() else None
    model, tokenizer = export.read_llm(CHECKPOINT / "llm")
    trained = export.read_adapter(CHECKPOINT, encoder.config.d_model, model.config.hidden_size)
    rows = evaluate.table(encoder, recogniser, trained, model, tokenizer, TESTS, SEED)
    if HUMAN_DIGITS.exists():
        digits = evaluate.human_digits(encoder, recogniser, trained, model, tokenizer, HUMAN_DIGITS)
        rows["people, single digits"] = digits
    evaluate.write(rows, RESULTS)
    print(RESULTS.with_suffix(".md").read_text())
    if CONTINUATIONS.exists():
        print(json.dumps(continuations.summary(continuations.read(CONTINUATIONS))))


def comparison() -> None:
    """Trains the adapter with other choices, all alike and shorter, and measures each."""
    model, tokenizer = export.read_llm(LLM)
    replies = continuations.read(CONTINUATIONS)
    compare.compare(
        _recogniser(),
        model,
        tokenizer,
        EncodedSpeech.load(STATES),
        replies,
        TESTS,
        WORK / "comparison",
        COMPARISON_STEPS,
        SEED,
    )


def samples() -> None:
    """Records a dozen samples."""
    write_samples(SAMPLES, SEED)


STAGES: dict[str, Callable[[], None]] = {
    "speech": speech,
    "networks": networks,
    "continuations": continue_texts,
    "states": states,
    "adapter": adapter,
    "tests": tests,
    "evaluation": evaluation,
    "samples": samples,
}
_ALONE: dict[str, Callable[[], None]] = {"encoder": encoder, "llm": llm, "comparison": comparison}
_SPEAKING = {"speech", "tests", "samples"}


def check_voices() -> None:
    """Ends the program with what is missing where a voice can't speak on this machine."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        if mute := process.submit(mute_voices).result():
            sys.exit("These voices can't speak here:\n" + "\n".join(mute))


def _together(jobs: list[tuple[Callable[..., None], tuple[object, ...]]]) -> None:
    """Runs jobs side by side; raises RuntimeError where one fails."""
    processes = [multiprocessing.get_context("spawn").Process(target=_job, args=job) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a training process failed: see its output above")


def _job(function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    _set_up()
    function(*arguments)


def _set_up() -> None:
    """One thread a process: the networks are too small for more."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")


def main() -> None:
    """Builds what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "stage", nargs="*", help=f"by default {', '.join(STAGES)}; else any of these and {', '.join(_ALONE)}"
    )
    parser.add_argument("--fresh", action="store_true", help="forget all earlier work first")
    arguments = parser.parse_args()
    if unknown := set(arguments.stage) - STAGES.keys() - _ALONE.keys():
        parser.error(f"no stage is called {', '.join(sorted(unknown))}")
    if arguments.fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    WORK.mkdir(parents=True, exist_ok=True)
    _set_up()
    stages = arguments.stage or list(STAGES)
    if not _SPEAKING.isdisjoint(stages):
        check_voices()
    for stage in stages:
        logger.info("stage %s", stage)
        (STAGES | _ALONE)[stage]()


if __name__ == "__main__":
    main()
