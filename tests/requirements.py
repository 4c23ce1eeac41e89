"""What some tests need of the machine (without it they are skipped, and say why), and how many threads they use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from denoised.model.backends.native.compiler import compilers

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
HAS_COMPILER = bool(list(compilers()))
# Of tests that do not choose their number: the networks are tiny, and a second thread only slows them down on a busy
# machine. `make test-processors` runs them with more.
THREADS = int(os.environ.get("OMP_NUM_THREADS") or 1)

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler here (Debian: apt install gcc)")
needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not installed (Debian: apt install dataset-fashion-mnist)"
)
