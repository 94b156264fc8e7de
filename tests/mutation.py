"""`make mutation`: changes a sample of the code, one place at a time, and sees whether the tests that guard it notice.

The changes are Cosmic Ray's, and one of ours: a call that stands alone is left out. Not made are those that say little: in annotations,
and operators that nobody would write by mistake, as `<<` for `+`, which any test sees. Which places of a file are changed, and how, is told
by a hash of line, change and seed: the same on every machine, and a line keeps its changes when others change.

Code and tests are copied to build/mutation, so that the working tree stays as it is. What is heavy to import is imported once, and the
tests of every change run in a fork of that process; that they do not end counts as noticed. The result goes to tests/MUTATION.md, where
every survivor has a decision: written by hand, and kept from run to run. The status is 1 where one has none yet.
"""

import argparse
import difflib
import hashlib
import importlib
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import parso
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build/mutation"
LOG = COPY / "pytest.log"
REPORT = ROOT / "tests/MUTATION.md"
BY_HAND = "## Caught since"  # this heading and all below it are kept as they are
UNDECIDED = "**No decision yet.**"
GREEN_SECONDS = 300  # for the tests of one file, without a change
HEAVY = [
    *("av", "hypothesis", "openai", "peft", "pytest_asyncio", "safetensors.torch", "schemathesis.pytest.plugin"),
    *("transformers.models.auto.modeling_auto", "vllm.entrypoints.openai.api_server", "vllm.v1.engine.async_llm"),
]

# Each operator, and what it becomes.
BINARY = {
    **{"Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "FloorDiv": "Div", "Mod": "Mul", "Pow": "Mul"},
    **{"RShift": "LShift", "LShift": "RShift", "BitOr": "BitAnd", "BitAnd": "BitOr"},
}
COMPARISON = {
    **{"Eq": ["NotEq"], "NotEq": ["Eq"], "Is": ["IsNot"], "IsNot": ["Is"]},
    **{"Lt": ["LtE", "Gt"], "LtE": ["Lt", "GtE"], "Gt": ["GtE", "Lt"], "GtE": ["Gt", "LtE"]},
}
OPERATORS = [
    *(f"ReplaceBinaryOperator_{old}_{new}" for old, new in BINARY.items()),
    *(f"ReplaceComparisonOperator_{old}_{new}" for old, news in COMPARISON.items() for new in news),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "AddNot", "NumberReplacer"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
    *("ExceptionReplacer", "RemoveDecorator"),
]

# Part, file and the tests that guard it, those first that tell soonest. Tests of one row run until the first fails.
GUARDS: dict[str, dict[str, str]] = {
    "service/gate": {
        "admission": "service/admission service/door",
        "keys": "service/keys service/middleware",
        "places": "service/places",
    },
    "service/http": {  # but for routes.py and realtime.py, whose tests need a server with its engine
        "app": "service/life service/middleware",
        "body": "service/body",
        "door": "service/door service/life",
        "events": "service/door",
        "json_route": "service/json_route",
        "middleware": "service/middleware service/life",
        "openapi": "service/middleware service/openapi_document",
        "page": "page/files",
        "server": "service/server service/door",
    },
    "service/listening": {
        "batcher": "service/batcher service/listener",
        "cache": "service/cache service/listener",
        "listener": "service/listener service/conversation",
        "voice": "service/voice",
    },
    "service/realtime": {
        **dict.fromkeys(
            ("answers", "beta", "config", "conversation", "ear", "protocol", "response", "session"),
            "service/realtime_session",
        ),
        "utterance": "service/utterance",
    },
    "service/audio": {
        "decode": "service/audio service/worlds_recordings",
        "decoder_process": "service/decoders",
        "decoders": "service/decoders",
        "fetch": "service/fetch",
        "headers": "service/audio service/worlds_recordings",
        "raw": "service/raw",
        "recordings": "service/recordings",
        "structure": "service/audio service/worlds_recordings",
        "upload": "service/upload service/body",
    },
    "models": {
        "adapter": "models/adapter models/spelling models/random_init",
        "lattice": "models/lattice",
        "spelling": "models/spelling models/adapter",
    },
    "models/training": {
        "align": "models/training/align",
        "arguments": "models/training/align models/training/warm_start models/training/instruct",
        "batches": "models/training/batches models/training/align",
        "instruct": "models/training/instruct",
        "llm": "models/training/align service/continuation",
        "model": "models/training/model models/training/local",
        "plot": "models/training/align",
        "states": "models/training/states models/training/model",
        "trainer": "models/training/warm_start models/training/align",
        "warm_start": "models/training/warm_start",
    },
}


class LeaveOutCall(Operator):  # type: ignore[misc]
    """A call that stands alone, awaited or not, becomes `pass`; calls that log stay."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Where they are."""
        code = node.get_code(include_prefix=False) if node.type == "simple_stmt" else ""
        if code and node.children[0].type == "atom_expr" and code.rstrip().endswith(")") and "log." not in code:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Without the call."""
        (nothing,) = parso.parse("pass").children[:1]
        nothing.prefix = node.get_first_leaf().prefix
        node.children[0] = nothing
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        """None."""
        return ()


@dataclass
class Mutant:
    """A change of one place in a file, and what came of it."""

    part: str
    name: str
    line: int
    diff: str
    code: str = field(repr=False)  # of the whole changed file
    outcome: str = ""

    @property
    def file(self) -> str:
        """From the root."""
        return f"{self.part}/{self.name}.py"


def sample(part: str, count: int, seed: int) -> Iterator[Mutant]:
    """Changes of so many places in the files of a part."""
    found = sorted(ranked for name in GUARDS[part] for ranked in changes(part, name, seed))
    places: set[tuple[str, tuple[int, int]]] = set()
    for _, name, place, operator, occurrence in found:
        if len(places) < count and (name, place) not in places:
            source = Path(part, f"{name}.py").read_text()
            code = mutate_code(source, operators()[operator], occurrence)
            if code is not None and code != source:
                places.add((name, place))
                yield Mutant(part, name, place[0], difference(source, code), code)


def changes(part: str, name: str, seed: int) -> Iterator[tuple[str, str, tuple[int, int], str, int]]:
    """All changes of a file: rank, name, line and column, operator and which of its changes."""
    source = Path(part, f"{name}.py").read_text()
    lines = source.splitlines()
    nodes = list(ast_nodes(get_ast(source)))
    for operator, change in operators().items():
        everywhere = ((node, start) for node in nodes for start, _ in change.mutation_positions(node))
        for occurrence, (node, place) in enumerate(everywhere):
            if not says_nothing(node):
                told = f"{seed} {name} {operator} {lines[place[0] - 1]} {place[1]} {occurrence % 2}"
                yield hashlib.sha256(told.encode()).hexdigest(), name, place, operator, occurrence


def says_nothing(node: Any) -> bool:
    """Whether a change of it does: it is in the type of a variable, an argument or a result, or the `*` before named arguments."""
    if node.parent is not None and node.parent.type == "parameters":
        return True
    while (parent := node.parent) is not None:
        if parent.type in ("annassign", "tfpdef") and node is parent.children[1 if parent.type == "annassign" else 2]:
            return True
        if parent.type == "funcdef" and node is parent.annotation:
            return True
        node = parent
    return False


def difference(old: str, new: str) -> str:
    """The lines that are no longer there and the new ones, each behind its sign."""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))
    return "\n".join(line for line in lines[2:] if not line.startswith("@@"))


def operators() -> dict[str, Operator]:
    """All that make changes, by name."""
    return {"LeaveOutCall": LeaveOutCall()} | {name: get_operator(f"core/{name}")() for name in OPERATORS}


def outcome_of(tests: Sequence[str], seconds: float) -> str:
    """What tests say to the copy as it is now: caught, survived or, where that takes longer than so many seconds, endless."""
    child = os.fork()
    if not child:
        os.setsid()
        log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", *tests]))
    end = time.monotonic() + seconds
    done = status = 0
    while not done and time.monotonic() < end:
        time.sleep(0.05)
        done, status = os.waitpid(child, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what the tests started
    if not done:
        os.waitpid(child, 0)
        return "endless"
    return "caught" if status else "survived"


def guards(part: str, name: str) -> tuple[str, ...]:
    """The files of a file's tests."""
    tests = [Path("tests", test) for test in GUARDS[part][name].split()]
    return tuple(str(test.with_name(f"test_{test.name}.py")) for test in tests)


def copy() -> None:
    """Code and tests, from where all is imported from now on."""
    shutil.rmtree(COPY, ignore_errors=True)
    for name in ("service", "models", "tests", "docs"):
        shutil.copytree(ROOT / name, COPY / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    shutil.copy(ROOT / "pyproject.toml", COPY)
    os.chdir(COPY)
    sys.path.insert(0, str(COPY))
    del sys.modules["tests"]
    os.environ |= {"PYTHONPATH": str(COPY), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True  # a changed file of the same second and size would go unseen
    for module in HEAVY:
        importlib.import_module(module)


def run(part: str, count: int, seed: int) -> list[Mutant]:
    """The sample of a part, each change with its outcome; ends the program where tests fail without a change."""
    chosen = list(sample(part, count, seed))
    limits: dict[tuple[str, ...], float] = {}
    for mutant in chosen:
        tests = guards(part, mutant.name)
        start = time.monotonic()
        if tests not in limits:
            if outcome_of(tests, GREEN_SECONDS) != "survived":
                raise SystemExit(f"{' '.join(tests)}: not green without a change; see {LOG}")
            limits[tests] = 20 + 2 * (time.monotonic() - start)
            start = time.monotonic()
        file = Path(mutant.file)
        source = file.read_text()
        file.write_text(mutant.code)
        mutant.outcome = outcome_of(tests, limits[tests])
        file.write_text(source)
        print(f"{mutant.outcome:8} {time.monotonic() - start:3.0f} s  {mutant.file}:{mutant.line}", flush=True)
    return chosen


def decisions(report: str) -> dict[tuple[str, str], str]:
    """What a former report says of each survivor, by its file and its change."""
    found = re.findall(r"^### (\S+):\d+\n\n```diff\n(.*?)\n```\n\n(.*?)\n(?=\n#|\Z)", report, re.S | re.M)
    return {(file, diff): decision for file, diff, decision in found if decision != UNDECIDED}


def written(all_mutants: list[Mutant], seed: int, minutes: float, former: str) -> str:
    """The new report."""
    known = decisions(former)
    rows = []
    for part in GUARDS:
        outcomes = Counter(mutant.outcome for mutant in all_mutants if mutant.part == part)
        total = outcomes.total()
        if total:
            caught = total - outcomes["survived"]
            rows.append(f"| {part} | {total} | {caught} | {outcomes['survived']} | {100 * caught / total:.0f} % |")
    survivors = [
        f"### {mutant.file}:{mutant.line}\n\n```diff\n{mutant.diff}\n```\n\n{known.get((mutant.file, mutant.diff), UNDECIDED)}\n"
        for mutant in sorted(all_mutants, key=lambda mutant: (mutant.file, mutant.line))
        if mutant.outcome == "survived"
    ]
    by_hand = former[former.index(BY_HAND) :] if BY_HAND in former else f"{BY_HAND}\n"
    head = f"# Which changes of the code the tests see\n\n`make mutation` (tests/mutation.py, seed {seed}, {minutes:.0f} minutes)"
    table = ["| part | changes | caught | survived | score |", "| --- | --- | --- | --- | --- |", *rows, ""]
    return "\n".join([head, "", *table, "## Survivors", "", *survivors, by_hand])


def main() -> None:
    """Runs the samples and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="changes for each part (20)")
    parser.add_argument("--seed", type=int, default=1, help="for other changes (1)")
    parser.add_argument(
        "--part", action="append", choices=GUARDS, help="only this part; the report is then left as it is"
    )
    options = parser.parse_args()
    start = time.monotonic()
    copy()
    found = [mutant for part in options.part or GUARDS for mutant in run(part, options.count, options.seed)]
    report = written(
        found, options.seed, (time.monotonic() - start) / 60, REPORT.read_text() if REPORT.exists() else ""
    )
    if options.part:
        print(report)
    else:
        REPORT.write_text(report)
    sys.exit(UNDECIDED in report)


if __name__ == "__main__":
    main()
