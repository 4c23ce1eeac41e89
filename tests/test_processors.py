"""`make test-processors` covers what it says."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import pytest

from ops.processors import NO_COMPILER, TESTS, VARIANTS, Variant


@pytest.mark.parametrize("fields", list(combinations(range(len(Variant._fields)), 2)))
def test_any_two_values_of_two_variables_meet_in_a_variant(fields: tuple[int, int]) -> None:
    first, second = ({variant[field] for variant in VARIANTS} for field in fields)
    assert set(product(first, second)) == {(variant[fields[0]], variant[fields[1]]) for variant in VARIANTS}


def test_a_variant_sets_its_variables_and_leaves_out_those_it_does_not_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("CC", "clang")
    plain = Variant("", "AVX2", 2, compiler=True).environment()
    assert "ATEN_CPU_CAPABILITY" not in plain
    assert (plain["ONEDNN_MAX_CPU_ISA"], plain["OMP_NUM_THREADS"], plain["CC"]) == ("AVX2", "2", "clang")
    assert Variant("default", "", 1, compiler=False).environment()["CC"] == NO_COMPILER


def test_the_folders_exist(repository: Path) -> None:
    assert all((repository / folder).is_dir() for folder in TESTS)
