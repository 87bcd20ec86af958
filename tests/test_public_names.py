"""Every module says what is public, and what it says is there."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

PACKAGES = ("mammo_fed",)


def modules() -> list[str]:
    """Every module of the packages by name; a package itself has nothing in it."""
    roots = [(importlib.import_module(name).__path__, f"{name}.") for name in PACKAGES]
    return [module.name for path, prefix in roots for module in pkgutil.walk_packages(path, prefix=prefix) if not module.ispkg]


@pytest.mark.parametrize("name", modules())
def test_a_module_has_a_docstring_and_the_public_names_that_it_says(name):
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()
    public = module.__all__
    assert len(set(public)) == len(public)
    assert [one for one in public if not hasattr(module, one) or one.startswith("_")] == []
