"""Packages of the extra `train` that evaluation needs."""

from __future__ import annotations

from importlib.util import find_spec

from denoised.model.errors import EvaluationError

INSTALL = "pip install 'denoised[train]'"


def require_packages(*packages: str) -> None:
    """Raise an EvaluationError that says what to install if one of the packages is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise EvaluationError(f"{package} is not installed: {INSTALL}")
