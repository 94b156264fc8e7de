"""What runs below a process."""

import subprocess


def descendants(pid: int, mark: str, *, children: bool = True) -> set[int]:
    """The processes below `pid` whose name or command line contains `mark`; without `children`, only those further below."""
    table = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,comm=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    family = {str(pid)}
    for _ in rows:  # a child may stand before its parent
        family |= {child for child, parent, _ in rows if parent in family}
    return {
        int(child)
        for child, parent, what in rows
        if child in family - {str(pid)} and mark in what and (children or parent != str(pid))
    }
