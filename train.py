"""Stage 2: labelled synthetic images, and unlabelled target images to align with, become a network.

\b
  python train.py --source data/clevr/sdr --out runs/clevr/0
  python train.py --source data/clevr/1 --target data/clevr/target/train --align appearance,prediction \\
      --init runs/clevr/0/model.pt --out runs/clevr/1

Writes OUT/model.pt, OUT/config.json and OUT/log.jsonl. Target labels are never opened.
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

import envs


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    steps, batch:       optimiser steps; images of each domain in a step.
    optimiser:          "adamw" with a one-cycle learning rate, or "sgd" with momentum 0.9 and a constant one.
    rate:               learning rate of the network (the cycle's peak).
    discriminator_rate: constant learning rate of the discriminators; they must keep up with the network they judge.
    factor:             gradient-reversal factor (its peak).
    ramp:               whether the factor grows from 0 to its peak over the run (Ganin et al. 2016).
    clip:               largest gradient norm.
    """

    steps: int
    batch: int
    optimiser: str
    rate: float
    discriminator_rate: float
    factor: float
    ramp: bool
    clip: float


SCHEDULES = {
    "quick": Schedule(400, 4, "adamw", 5e-4, 2e-3, 0.05, True, 10.0),
    "paper": Schedule(100_000, 4, "sgd", 1e-4, 1e-4, 4.0, False, 10.0),  # Prakash et al. 2021, implementation details
}


@click.command(help=__doc__, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--source", type=click.Path(path_type=Path), multiple=True, default=["data/clevr/sdr"],
              help="Labelled synthetic data set; may be given several times.")
@click.option("--target", type=click.Path(path_type=Path), default=None, help="Folder of images to align with.")
@click.option("--align", default="", show_default="none", help="appearance, prediction, or both with a comma.")
@click.option("--init", type=click.Path(path_type=Path), default=None, help="Checkpoint to start from.")
@click.option("--out", type=click.Path(path_type=Path), default="runs/clevr/0", help="Run folder to write.")
@click.option("--preset", type=click.Choice(["quick", "paper"]), default="quick",
              help="Network, input size and schedule: minutes on two cores, or the paper's.")
@click.option("--backbone", type=click.Choice(["resnet101", "resnet50", "resnet18"]), default=None,
              show_default="the preset's", help="Encoder.")
@click.option("--imagenet/--scratch", default=False, help="ImageNet weights, or group norm from random weights.")
@click.option("--steps", type=click.IntRange(1), default=None, show_default="the preset's", help="Optimiser steps.")
@click.option("--factor", type=click.FloatRange(0), default=None, show_default="the preset's",
              help="Gradient-reversal factor.")
@click.option("--warmup", type=click.FloatRange(0, 1, max_open=True), default=0.0,
              help="Share of the steps before the discriminators start.")
@click.option("--augment", type=click.Choice(["none", "colour"]), default="none", help="Augment the source's colours.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Same seed and thread count: same bytes.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that is not empty.")
def main(source: tuple[Path, ...], target: Path | None, align: str, init: Path | None, out: Path, preset: str,
         backbone: str | None, imagenet: bool, steps: int | None, factor: float | None, warmup: float, augment: str,
         seed: int, device: str, overwrite: bool) -> None:
    pass
