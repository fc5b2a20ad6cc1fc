from __future__ import annotations

import inspect

from chinchilla_lm.core import errors


def test_only_divergence_is_our_failure() -> None:
    for name, error in inspect.getmembers(errors, inspect.isclass):
        assert issubclass(error, errors.ChinchillaError)
        assert error.exit_code == (1 if name == "TrainingDiverged" else 2)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__
    for name, _ in inspect.getmembers(errors, inspect.isclass):
        assert name in errors.__doc__
