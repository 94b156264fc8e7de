"""A progress bar with rate and remaining time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False)


class Rate(ProgressColumn):
    """Lines per second."""

    def render(self, task: Task) -> Text:
        """The rate since the start."""
        return Text(f"{task.finished_speed or task.speed or 0:.1f}/s")


def progress_bar() -> Progress:
    """A bar with counts, rate and remaining time."""
    return Progress(
        "{task.description}", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(), console=console
    )


@contextmanager
def resumed_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told how many lines are done, of how many, and appears when it is first told.

    What was done before that is not this run's speed.
    """
    bar = progress_bar()

    def show(done: int, total: int) -> None:
        if not bar.tasks:
            bar.add_task(description, total=total, completed=done)
            bar.start()
        bar.update(bar.tasks[0].id, completed=done)

    try:
        yield show
    finally:
        bar.stop()
