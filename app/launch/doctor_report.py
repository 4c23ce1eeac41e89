"""What `denoised doctor` found, told as it is found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from rich.text import Text

from denoised.app.launch.console import REFUSED, lively, printable, say_json, stdout
from denoised.app.launch.diagnostics import Finding

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
NAME_WIDTH = 18


def tell(findings: Iterable[Finding], as_json: bool) -> int:
    """A line a finding, and what to do below it; returns the exit code. With JSON: one object."""
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            _line(finding)
    problems = sum(finding.state == "problem" for finding in found)
    if as_json:
        say_json({"ok": not problems, "findings": [asdict(finding) for finding in found]})
    else:
        warnings = sum(finding.state == "warning" for finding in found)
        stdout().print(f"{problems} problems, {warnings} warnings", style="bold" if problems else "")
    return REFUSED if problems else 0


def _line(finding: Finding) -> None:
    console = stdout()
    text = Text(f"{finding.state:8} ", style=STYLES[finding.state])
    text.append(f"{printable(finding.check):{NAME_WIDTH}} {printable(finding.message)}", style="default")
    console.print(text, soft_wrap=not lively(console))
    if finding.advice:
        console.print(Text(f"{'':9}→ {printable(finding.advice)}"), soft_wrap=not lively(console))
