"""The environments: one file of declarations each. A new file here is a new choice of `--env`."""
import importlib
import pkgutil

from sim2sg_lib.cli import InputError


def names() -> list[str]:
    """The environments, found without importing them."""
    modules = pkgutil.iter_modules(__path__)
    return sorted(m.name for m in modules if not m.ispkg and not m.name.startswith("_"))


def find(name: str, where: str = "--env"):
    """The `Env` that envs/<name>.py declares.

    Raises: InputError for an unknown name, starting with `where`, or if the Env has another name.
    """
    if name not in names():
        raise InputError(f"{where}: {name!r} is not one of {', '.join(names())}")
    env = importlib.import_module(f"envs.{name}").ENV
    if env.name != name:  # data sets and checkpoints would be taken for another environment's
        raise InputError(f"envs/{name}.py: ENV: name: {env.name!r}, expected {name!r}")
    return env
