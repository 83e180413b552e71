"""The environments: one file of declarations each. A new file here is a new choice of `--env`."""
import importlib
import pkgutil

from sim2sg_lib.cli import InputError


def names() -> list[str]:
    """The environments there are, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def find(name: str, where: str = "--env"):
    """The `Env` that envs/<name>.py declares.

    Errors: InputError that says `where` the name came from and what there is; or for a file whose Env has another name.
    """
    if name not in names():
        raise InputError(f"{where}: {name!r} is not one of {', '.join(names())}")
    env = importlib.import_module(f"envs.{name}").ENV
    if env.name != name:  # what is written in its name would be taken for another environment's
        raise InputError(f"envs/{name}.py: ENV: name: {env.name!r}, expected {name!r}")
    return env
