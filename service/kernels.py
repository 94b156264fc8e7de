"""How many kernels are kept of those that oneDNN compiles, one for each shape of matrices that it meets."""

import os

KEPT = 128
"""Of the thousand that are usual, which grow to 400 MiB. Where lengths of recordings take turns, they cost 6 % more (benchmarks/LOG.md)."""

VARIABLES = (
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "LRU_CACHE_CAPACITY",  # torch's own, one for each thread, of their descriptions, which are as large
)


def keep_few() -> None:
    """For processes that start from now on, and for this one if it has multiplied nothing yet; what the operator has set stays."""
    for name in VARIABLES:
        os.environ.setdefault(name, str(KEPT))
