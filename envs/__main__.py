"""`python -m envs`: environments and presets. `python -m envs clevr quick`: as shell variables."""
import sys
from dataclasses import fields

import envs
from sim2sg_lib.cli import InputError
from sim2sg_lib.env import Preset

SIZES = [field.name for field in fields(Preset) if field.name != "image_size"]


def main(name: str | None = None, preset: str | None = None) -> None:
    """Raises: InputError for an unknown environment or preset."""
    for env in map(envs.find, [name] if name else envs.names()):
        if preset is None:
            for title, row in env.presets.items():
                print(env.name, title, f"image_size={row.image_size[0]}x{row.image_size[1]}",
                      *(f"{field}={getattr(row, field)}" for field in SIZES))
        elif preset not in env.presets:
            raise InputError(f"PRESET: {preset!r} is not one of {', '.join(env.presets)}")
        else:
            for field in SIZES:
                print(f"{field.upper()}={getattr(env.presets[preset], field)}")
            print("DOMAINS=" + " ".join(env.domains))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as error:
        error.show()
        sys.exit(error.exit_code)
