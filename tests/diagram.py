"""Who imports whom, drawn into CONTRIBUTING.md: `make diagram`. An arrow that another way already says is left out."""

import re

from tests.test_layers import PARTS, ROOT

PAGE = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"```mermaid\n.*?```\n", re.S)


def reachable(part: str) -> set[str]:
    """All parts that a part stands on, near and far."""
    return PARTS[part].union(*map(reachable, PARTS[part]))


def diagram() -> str:
    """The parts of both packages as a Mermaid flowchart, the highest on top."""
    lines = ["```mermaid", "flowchart TD"]
    for package in ("service", "models"):
        names = [part.partition("/")[2] for part in PARTS if part.startswith(f"{package}/")]
        lines += [f"  subgraph {package}", *(f"    {package}/{name}[{name}]" for name in reversed(names)), "  end"]
    for part in reversed(PARTS):
        further = set().union(*map(reachable, PARTS[part]))
        lines += [f"  {part} --> {below}" for below in PARTS if below in PARTS[part] - further]
    return "\n".join([*lines, "```", ""])


def drawn(page: str) -> str:
    """The page with today's diagram."""
    return BLOCK.sub(lambda _: diagram(), page, count=1)


def main() -> None:
    """Draws it."""
    PAGE.write_text(drawn(PAGE.read_text()))


if __name__ == "__main__":
    main()
