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
    """A bar that is told how many lines are done, of how many; what was done before the first call is not this run's speed."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=None)

        def show(done: int, total: int) -> None:
            if bar.tasks[0].total is None:
                bar.reset(task, total=total, completed=done)
            bar.update(task, completed=done)

        yield show
