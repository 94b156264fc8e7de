"""What the two trainings share: Hugging Face's Trainer with batches of similar length, and a run that goes on where it was killed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from models.training.arguments import last_checkpoint
from models.training.batches import LengthSampler
from models.training.plot import plot_loss


class LengthTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose steps hold examples of similar length; `lengths` are those of its training data, in any unit."""

    def __init__(self, lengths: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        self._lengths = lengths

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        args = self.args
        unit = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return LengthSampler(self._lengths, unit, seed, lambda: int(self.state.epoch or 0))


def run(trainer: Trainer) -> None:
    """Trains, from the last checkpoint in the output folder if there is one; leaves the model, its logs and `loss.png` there.

    A run that has taken all its steps takes no more. Ends what connects the processes of the run.
    """
    out = Path(trainer.args.output_dir)
    last = last_checkpoint(out)
    state = None if last is None else TrainerState.load_from_json(str(Path(last) / TRAINER_STATE_NAME))
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if last is not None and state is not None and steps <= state.global_step:
        trainer._load_from_checkpoint(last)  # from here, Trainer would take one step before it looks how many there are
        trainer.state = state
    else:
        trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.save_state()
        plot_loss(trainer.state.log_history, out / "loss.png")
    trainer.accelerator.end_training()  # or gloo's threads can abort a process that is done
