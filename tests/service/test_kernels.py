import os
import subprocess
import sys

import pytest

from models.encoder import ONEDNN
from service.kernels import VARIABLES

PROGRAM = """
import psutil
import torch
from models.encoder import product
from service import kernels

kernels.keep_few()
weight = torch.randn(64, 64)
with torch.inference_mode():
    product(weight, weight)
    before = psutil.Process().memory_info().rss
    for rows in range(1, 1001):
        product(torch.randn(rows, 64), weight)
    print(psutil.Process().memory_info().rss - before >> 20)
"""


def kernels_mib(**environment: str) -> int:
    """How much memory those for a thousand shapes take, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM]
    return int(subprocess.run(command, env=os.environ | environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(not ONEDNN, reason="torch without oneDNN")
def test_an_eighth_of_the_kernels_is_kept() -> None:
    """About 100 MiB instead of 570; where one of the two caches is as large as it is usually, 430."""
    everything = kernels_mib(**dict.fromkeys(VARIABLES, "1024"))
    assert everything > 300, "what the operator says holds"
    assert kernels_mib() < everything / 2
