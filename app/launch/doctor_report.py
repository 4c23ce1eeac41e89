"""The output of `denoised doctor`, printed while the checks run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from rich.text import Text

from denoised.app.launch.diagnostics import Finding
from denoised.command_line.console import FAILED, can_redraw, print_json, printable, stdout

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
NAME_WIDTH = 18


def print_findings(findings: Iterable[Finding], as_json: bool) -> int:
    """Print a line per finding with the advice below it, or one JSON object. Returns the exit code."""
    reported = []
    for finding in findings:
        reported.append(finding)
        if not as_json:
            _print_finding(finding)
    problems = sum(finding.state == "problem" for finding in reported)
    if as_json:
        print_json({"ok": not problems, "findings": [asdict(finding) for finding in reported]})
    else:
        warnings = sum(finding.state == "warning" for finding in reported)
        stdout().print(
            f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}", style="bold" if problems else ""
        )
    return FAILED if problems else 0


def _print_finding(finding: Finding) -> None:
    console = stdout()
    text = Text(f"{finding.state:8} ", style=STYLES[finding.state])
    text.append(f"{printable(finding.check):{NAME_WIDTH}} {printable(finding.message)}", style="default")
    console.print(text, soft_wrap=not can_redraw(console))
    if finding.advice:
        console.print(Text(f"{'':9}→ {printable(finding.advice)}"), soft_wrap=not can_redraw(console))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
