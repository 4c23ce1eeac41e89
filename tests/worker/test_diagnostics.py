"""What a worker would find on this machine, reported before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from denoised.app.launch.diagnostics import Finding
from denoised.model.serving.loading import ZOO
from denoised.worker import diagnostics
from tests.text_pipelines import save_pipeline


def found(device: str = "cpu", *folders: Path, precision: Any = "float32") -> dict[str, dict[str, str | None]]:
    return {str(finding["check"]): finding for finding in diagnostics.examine(device, folders, precision)}


def test_the_program_prints_one_object_per_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(diagnostics, "bundled", lambda: [ZOO / "digits"])
    diagnostics.main(["--device", "cpu", "--model", str(tmp_path)])
    findings = [Finding(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    checks = [finding.check for finding in findings]
    assert checks[:6] == ["device", "cuda", "processor", "threads", "compiler", "kernel cache"]
    assert checks[6:] == ["model digits", f"model {tmp_path.name}"]
    assert findings[-2].state in ("ok", "warning")  # without a compiler it is served by slower kernels
    assert findings[-2].message.startswith("8×8×1, 10 classes, ")
    assert findings[-1].state == "problem"


def test_a_folder_that_cannot_be_served_is_a_problem_that_names_the_file(tmp_path: Path) -> None:
    finding = found("cpu", tmp_path)[f"model {tmp_path.name}"]
    assert finding["state"] == "problem"
    assert f"{tmp_path}: is empty" in str(finding["message"])
    assert "\n" not in str(finding["message"])


def test_a_folder_that_is_missing_is_to_be_named_and_not_repaired(tmp_path: Path) -> None:
    finding = found("cpu", tmp_path / "nothere")["model nothere"]
    assert (finding["state"], finding["advice"]) == ("problem", "name a folder that exists")


def test_a_text_model_takes_prompts_and_has_no_number_of_classes(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "painter")
    finding = found("cpu", tmp_path / "painter")["model painter"]
    assert str(finding["message"]).startswith("16×16×3, prompts, ")


def test_a_device_that_is_not_available_is_a_problem() -> None:
    finding = found("abacus")["device"]
    assert (finding["state"], finding["advice"]) == ("problem", "DENOISED_DEVICE=cpu")
    assert "abacus" in str(finding["message"])


def test_without_a_compiler_or_a_cache_there_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    (tmp_path / "denoised").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    findings = found()
    assert (findings["compiler"]["state"], findings["kernel cache"]["state"]) == ("warning", "warning")
    assert "CC" in str(findings["compiler"]["advice"])


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_THREADS", "4096")
    assert found()["threads"]["state"] == "warning"
    monkeypatch.setenv("DENOISED_THREADS", "1")
    assert found()["threads"]["state"] == "ok"


def test_what_a_worker_refuses_is_a_problem(tmp_path: Path) -> None:
    """A precision of another device, and two folders of one name."""
    assert found(precision="tf32")["device"]["state"] == "problem"
    (tmp_path / "digits").symlink_to(ZOO / "digits")
    findings = found("cpu", ZOO / "digits", tmp_path / "digits")
    assert findings["models"]["state"] == "problem"
    assert "would both be served as 'digits'" in str(findings["models"]["message"])


def test_a_number_of_threads_that_is_none_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_THREADS", "tcp://10.0.0.1:80")
    assert found()["threads"]["state"] == "problem"
