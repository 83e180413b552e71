"""Adaptation methods: what a training step does with unlabeled target images."""
import math
from dataclasses import asdict, replace

from torch import nn

from sim2sg_lib.adapt.base import Adaptation
from sim2sg_lib.adapt.sim2sg import AppearanceAlignment, PredictionAlignment
from sim2sg_lib.cli import InputError
from sim2sg_lib.net.backbone import ModelConfig

METHODS: dict[str, type[Adaptation]] = {  # name for --align -> method
    "appearance": AppearanceAlignment,
    "prediction": PredictionAlignment,
}


def choose_knobs(align: str, settings: tuple[str, ...], preset: str) -> dict:
    """The methods of --align "NAME,NAME" and their knobs, with `settings` of --set NAME.KNOB=VALUE.

    Raises: InputError for a method, knob or value that does not exist.
    """
    names = list(dict.fromkeys(name.strip() for name in align.split(",") if name.strip()))
    for name in names:
        if name not in METHODS:
            raise InputError(f"--align: {name!r} is not one of {', '.join(METHODS)}")
    chosen = {name: METHODS[name].PRESETS[preset] for name in names}
    for setting in settings:
        path, _, text = setting.partition("=")
        name, _, knob = path.partition(".")
        valid = [f"{name}.{knob}" for name, knobs in chosen.items() for knob in asdict(knobs)]
        if path not in valid:
            raise InputError(f"--set {setting}: expected NAME.KNOB=VALUE with "
                             f"{', '.join(valid) or 'a method of --align'}")
        value = _parse(text, getattr(chosen[name], knob), setting)
        chosen[name] = replace(chosen[name], **{knob: value})
    return chosen


def _parse(text: str, default: bool | float, setting: str) -> bool | float:
    if type(default) is bool:
        if text not in ("true", "false"):
            raise InputError(f"--set {setting}: expected true or false")
        return text == "true"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"--set {setting}: expected a finite number from 0 on")
    return value


def make(knobs: dict, config: ModelConfig) -> nn.ModuleDict:
    """The methods of `choose_knobs`, by name."""
    return nn.ModuleDict({name: METHODS[name](config, own) for name, own in knobs.items()})
