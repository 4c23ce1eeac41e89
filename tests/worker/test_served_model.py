"""The worker knows models by their protocol alone."""

from __future__ import annotations

import re
from pathlib import Path

CONCRETE = re.compile(r"\b(PixelModel|\w*UNet\w*|EagerBackend|pack(ed)?_\w+|can_pack)\b")


def test_no_file_of_the_worker_names_a_model_class_or_a_backend() -> None:
    files = sorted((Path(__file__).parents[2] / "worker").rglob("*.py"))
    assert len(files) > 10
    named = {str(path): found for path in files if (found := CONCRETE.findall(path.read_text(encoding="utf-8")))}
    assert named == {}
