"""What some tests need of the machine. Without it they are skipped, and say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from denoised.model.backends.native.compiler import compilers

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
HAS_COMPILER = bool(list(compilers()))

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler here (Debian: apt install gcc)")
needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not installed (Debian: apt install dataset-fashion-mnist)"
)
