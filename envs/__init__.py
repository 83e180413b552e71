"""The environments: one file of declarations each. A new file here is a new choice of `--env`."""
import importlib
import pkgutil

from sim2sg_lib.terminal import InputError


def names() -> list[str]:
    """The environments there are, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def find(name: str, where: str = "--env"):
    """The `Env` that envs/<name>.py declares. Errors: InputError that says `where` the name came from and what there is."""
    if name not in names():
        raise InputError(f"{where}: {name!r} is not one of {', '.join(names())}")
    return importlib.import_module(f"envs.{name}").ENV
