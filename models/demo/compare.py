"""What the choices for the adapter are worth: the same training with one of them changed, and the same evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.config import AdapterSizes
from models.demo import continuations, evaluate, train_adapter
from models.demo.train_adapter import SIZES, EncodedSpeech, Objective
from models.demo.train_encoder import SpeechRecogniser


class Variant(NamedTuple):
    """A choice for the adapter's training."""

    objective: Objective = "divergence"
    sizes: AdapterSizes = SIZES
    keep: Callable[[str, str], bool] = lambda text, continuation: True
    """Which sentences, with their continuations, it learns from."""


VARIANTS = {
    "as shipped": Variant(),
    "cross-entropy": Variant(objective="cross-entropy"),
    "4 times reduction": Variant(sizes=SIZES.model_copy(update={"conv_kernel_sizes": (5, 5)})),
    "never restating": Variant(keep=lambda text, continuation: not continuations.restates(text, continuation)),
    "always restating": Variant(keep=lambda text, continuation: continuations.restated_share(text, continuation) == 1),
}


def compare(
    recogniser: SpeechRecogniser,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    speech: EncodedSpeech,
    replies: dict[str, str],
    tests: Path,
    work: Path,
    steps: int,
    seed: int,
) -> None:
    """Trains each variant for `steps` steps and writes its figures to `work`/NAME.json and .md; one that has them is skipped."""
    work.mkdir(parents=True, exist_ok=True)
    for name, (objective, sizes, keep) in VARIANTS.items():
        run = work / name.replace(" ", "-")
        if run.with_suffix(".json").exists():
            continue
        kept = {text: reply for text, reply in replies.items() if keep(text, reply)}
        adapter = train_adapter.train(
            speech, kept, model, tokenizer, run.with_suffix(".pt"), steps, seed, objective, sizes
        )
        rows = evaluate.table(recogniser.encoder, recogniser, adapter.eval(), model, tokenizer, tests, seed)
        evaluate.write(rows, run.with_suffix(".json"))
