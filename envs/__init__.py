"""The environments: one file of declarations each. A new file here is a new choice of `--env`."""
import importlib
import pkgutil

import click


def names() -> list[str]:
    """The environments there are, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str):
    """The `Env` that envs/<name>.py declares. Errors: click.BadParameter, naming what there is."""
    if name not in names():
        raise click.BadParameter(f"{name!r} is not one of {', '.join(names())}", param_hint="--env")
    return importlib.import_module(f"envs.{name}").ENV
