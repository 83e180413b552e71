"""Stage 2: labeled images, and unlabeled target images to adapt to, become a network.

\b
  python train.py --source data/clevr/sdr --out runs/clevr/0
  python train.py --source data/clevr/sdr --source data/clevr/1 \\
      --target data/clevr/target/train --align appearance,prediction \\
      --init runs/clevr/0/model.pt --out runs/clevr/1

Writes OUT/model.pt, OUT/config.json and OUT/log.jsonl. Target labels are never opened. After an
interruption, the same command continues and gives the same bytes.
"""
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path

import click

import envs
from sim2sg_lib.cli import (FloatRange, InputError, command_line, log_info, output_options,
                            print_json, progress, stop_request)

PATH = click.Path(path_type=Path)
CLIP = 10.0  # largest gradient norm, of the network and of the adaptation methods
STATE = "state.pt"  # in an unfinished run: everything needed to resume


@dataclass(frozen=True)
class Schedule:
    """How the network is trained."""

    steps: int  # of the optimizer
    warmup: float  # fraction of the steps before adaptation starts
    batch: int  # images of each domain per step
    optimizer: str  # "adamw" with a one-cycle learning rate, or "sgd" with a constant one
    rate: float  # learning rate of the network, the peak of the cycle
    encoder_rate: float  # learning rate of the encoder's body, as a fraction of `rate`
    ema: float  # decay of the average of the weights, which is what a run results in
    augment: str = "full"  # of all images, see `augment.augment`
    newest: float | None = None  # fraction of the labeled images that are of the newest data set


# preset -> optimizer, rate, encoder_rate with ImageNet weights, ema; steps, warm-up and batch are the
# environment's. "paper": Prakash et al. 2021, implementation details, but for ema
OPTIMIZERS = {"quick": ("adamw", 5e-4, 0.2, 0.99), "paper": ("sgd", 1e-4, 1.0, 0.999)}


@click.command(help=__doc__,
               context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--source", type=PATH, multiple=True, default=["data/clevr/sdr"],
              help="Labeled data set; repeatable, the newest last.")
@click.option("--target", type=PATH, help="Folder of unlabeled images to adapt to.")
@click.option("--align", default="", show_default="none",
              help="Adaptation methods of sim2sg_lib/adapt, separated by commas.")
@click.option("--set", "settings", multiple=True, metavar="NAME.KNOB=VALUE",
              help="A method's setting, e.g. appearance.factor=4; repeatable.")
@click.option("--init", type=PATH, help="Checkpoint to start from.")
@click.option("--out", type=PATH, default="runs/clevr/0", help="Run folder to write.")
@click.option("--preset", type=click.Choice(list(OPTIMIZERS)), default="quick",
              help="Network, input size and schedule: minutes on two cores, or the paper's; with "
                   "--init the schedule alone.")
@click.option("--backbone", type=click.Choice(["efficientnet_lite0", "resnet101", "resnet50",
                                                 "resnet18"]),
              show_default="the preset's", help="Encoder.")
@click.option("--imagenet/--scratch", default=None, show_default="the preset's",
              help="ImageNet weights and frozen batch norm, or random weights and group norm.")
@click.option("--input", "input_", type=click.Choice(["edges", "rgb"]),
              show_default="edges from scratch, rgb with ImageNet weights",
              help="What the encoder sees of an image.")
@click.option("--steps", type=click.IntRange(1),
              show_default="the environment's for the preset, with or without --init",
              help="Optimizer steps.")
@click.option("--warmup", type=FloatRange(0, 1, max_open=True),
              show_default="the environment's with --init, else 0",
              help="Fraction of the steps before adaptation starts.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32",
              help="Numbers that the encoder computes with; weights, heads and losses are fp32.")
@click.option("--encoder-rate", type=FloatRange(0, 1), show_default="the preset's, 1 from scratch",
              help="Learning rate of the encoder's body, as a fraction of that of the heads.")
@click.option("--ema", type=FloatRange(0, 1, max_open=True), show_default="the preset's",
              help="Decay of the average of the weights that is saved; 0 saves the last ones.")
@click.option("--newest", type=FloatRange(0, 1), show_default="as many as its share of all images",
              help="Fraction of the labeled images per step that are of the newest --source.")
@click.option("--augment", type=click.Choice(["none", "color", "full", "strong"]), default="full",
              help="Change the images of both domains: their colors (color); gamma, contrast, "
                   "noise and blur (full); or all of it (strong).")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0,
              help="The same seed and number of threads give the same bytes.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that is not empty.")
@click.option("--resume/--no-resume", default=True,
              help="Continue an interrupted run of the same command, or start again.")
@click.option("--save-every", type=click.IntRange(1), default=200,
              help="Steps between two saves of the state to resume from.")
@output_options
def main(source: tuple[Path, ...], target: Path | None, align: str, settings: tuple[str, ...],
         init: Path | None, out: Path, preset: str, backbone: str | None, imagenet: bool | None,
         input_: str | None, steps: int | None, warmup: float | None, precision: str,
         encoder_rate: float | None, ema: float | None, newest: float | None, augment: str,
         seed: int, device: str, overwrite: bool, resume: bool, save_every: int) -> None:
    # --- setup: the library is imported here, so that --help needs no torch
    import torch
    from sim2sg_lib import adapt, checkpoint
    from sim2sg_lib.data_loading import LabeledImages, UnlabeledImages
    from sim2sg_lib.io.files import write_json
    from sim2sg_lib.io.folders import digest, finished, note_finished, refuse_early, work_folder
    from sim2sg_lib.io.reading import read_json, recorded, utf8
    from sim2sg_lib.training_state import TrainingLog

    start = time.perf_counter()
    torch.manual_seed(seed)
    knobs = adapt.choose_knobs(align, settings, preset)
    if knobs and not target:
        raise InputError("--align needs --target, the images to adapt to")
    if target and not knobs:
        raise InputError("--target is used by --align alone: add --align NAME or leave it out")
    refuse_early(out, overwrite, [*source, target, init])
    first = source[0] / "dataset.json"
    env = envs.find(read_json(first).get("env"), f"{first}: env")
    device = checkpoint.pick_device(device)

    # --- model and data
    model = make_model(init, env, preset, backbone, imagenet, input_, device)
    checkpoint.check_precision(precision, device)
    model.detector.bf16 = precision == "bf16"
    schedule = make_schedule(env.presets[preset], preset, init is not None, model.config.imagenet,
                             steps=steps, warmup=warmup, encoder_rate=encoder_rate, ema=ema,
                             augment=augment, newest=newest)
    size = env, model.config.width, model.config.height
    labeled = LabeledImages(source, *size)
    unlabeled = UnlabeledImages(target, *size) if target else None
    # discriminators see the newest data set alone
    aligned = UnlabeledImages(source[-1], *size) if target and len(source) > 1 else None
    options = {"command": utf8("python " + shlex.join(sys.argv)), "env": env.name,
               "source": [recorded(folder, out) for folder in source],
               "target": recorded(target, out) if target else None,
               "align": list(knobs), "init": recorded(init, out) if init else None, "preset": preset,
               "precision": precision, "seed": seed, "schedule": asdict(schedule),
               "adaptation": {name: asdict(own) for name, own in knobs.items()},
               "model": asdict(model.config), **checkpoint.runtime_info(device)}
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    log_info(f"{env.name} | {model.config.backbone} {size[1]}x{size[2]}, {weights:.1f} M weights | "
             f"{len(labeled)} labeled images, {len(unlabeled) if unlabeled else 0} of the target | "
             f"align {align or 'none'} | {schedule.steps} steps | seed {seed} | {device} -> {out}")

    # --- train, save
    labels = [folder / name for folder in source for name in ("dataset.json", "graphs.jsonl")]
    inputs = labels + ([init] if init else []) + labeled.paths + (unlabeled.paths if target else [])
    with work_folder(out, options | {"input": digest(*inputs)}, overwrite, resume) as partial:
        summary = finished(partial)
        if summary is None:
            write_json(partial / "config.json", options)
            state = make_state(model, knobs, schedule)
            if init and knobs and checkpoint.load_methods(checkpoint.read(init, device),
                                                          state.methods):
                log_info(f"the discriminators of {init} go on")
            chances = {name: method.CHANCE_LOSS for name, method in state.methods.items()
                       if method.CHANCE_LOSS}
            log = TrainingLog(partial / "log.jsonl", schedule.batch, start, chances)
            train(state, schedule, labeled, unlabeled, aligned, seed, log, partial / STATE,
                  save_every, device)
            checkpoint.save(partial / "model.pt", state.averaged.module, env, options,
                            state.methods)
            summary = {"loss": round(log.last_loss, 6),
                       "seconds": round(time.perf_counter() - log.start, 1)}
            write_json(partial / "config.json", options | {"seconds": summary["seconds"]})
            note_finished(partial, summary)
        (partial / STATE).unlink(missing_ok=True)
    print_json({"out": str(out), "env": env.name, "steps": schedule.steps, **summary})


def train(state, schedule: Schedule, labeled, unlabeled, aligned, seed: int, log, state_path: Path,
          save_every: int, device) -> None:
    """The inner loop of Algorithm 1, from the step at which an earlier run was interrupted.

    labeled, unlabeled: images of the task and of the target. aligned: the source images to align
    with the target's; without, those of the task.
    Raises: click.ClickException for a loss or a gradient that is not finite.
    """
    from sim2sg_lib.augment import augment
    from sim2sg_lib.data_loading import loader

    model, steps = state.model, schedule.steps
    start_step = state.restore(state_path, log, device)
    sources = loader(labeled, schedule.batch, steps, seed, device, start_step, schedule.newest)
    targets, newest = (loader(images, schedule.batch, steps, seed + domain, device, start_step)
                       if images else repeat((None, []))
                       for domain, images in ((1, unlabeled), (2, aligned)))
    with stop_request() as stop, progress(steps, "train", "step", done=start_step) as bar:
        for step, batches in enumerate(zip(sources, targets, newest), start_step):
            if step == start_step:  # after the loaders have drawn their seeds
                state.restore_random()
            (images, labels, names), *others = batches
            names = sum((own for _, own in others), names)

            # the task on labeled images, adaptation on images of both domains
            adapting = bool(state.methods) and step >= schedule.warmup * steps
            domains = [images] + [own for own, _ in others if adapting and own is not None]
            source, *adapted_to = model.forward_each(*(
                augment(own, schedule.augment, (seed, domain, step))
                for domain, own in enumerate(domains)))
            losses = model.losses(source, labels)
            notes = {"rate": state.optimizer.param_groups[0]["lr"]}
            if adapting:
                adapted = max(0.0, (step / steps - schedule.warmup) / (1 - schedule.warmup))
                target, synthetic = (*adapted_to, source)[:2]
                for method in state.methods.values():
                    more, numbers = method.losses(model, synthetic, target, adapted)
                    losses, notes = losses | more, notes | numbers
            stop_if_not_finite(losses, step, names, log)
            optimize(state, losses, adapting, step, names, log)

            for name in log.add(step, {name: loss.item() for name, loss in losses.items()} | notes):
                state.methods[name].stopped.fill_(True)
            bar.set_postfix_str(f"loss {log.last_loss:.3f}", refresh=False)
            bar.update()
            if stop or (step + 1) % save_every == 0 and step + 1 < steps:
                state.save(state_path, step + 1, log)
            if stop:
                raise stop[0]
    log.close()


def optimize(state, losses: dict, adapting: bool, step: int, names: list[str], log) -> None:
    """One step of the optimizers. Raises: click.ClickException for a gradient that is not finite."""
    from torch.nn.utils import clip_grad_norm_

    trained = {"network": (state.model, state.optimizer)}
    if adapting and state.disc_optimizer:
        trained["discriminators"] = (state.methods, state.disc_optimizer)
    for _, optimizer in trained.values():
        optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    norms = {f"the gradient of the {name}": clip_grad_norm_(module.parameters(), CLIP)
             for name, (module, _) in trained.items()}
    stop_if_not_finite(norms, step, names, log)
    for _, optimizer in trained.values():
        optimizer.step()
    state.lr_scheduler.step()
    state.averaged.update_parameters(state.model)


def make_schedule(numbers, preset: str, init: bool, imagenet: bool, **options) -> Schedule:
    """The environment's `Preset` and this file's, with the options that were given."""
    steps, warmup = (numbers.steps, numbers.warmup) if init else (numbers.start_steps, 0.0)
    schedule = Schedule(steps, warmup, numbers.batch, *OPTIMIZERS[preset])
    return override(schedule if imagenet else replace(schedule, encoder_rate=1.0), **options)


def override(preset, **options):
    """A preset with the options that were given."""
    return replace(preset, **{name: v for name, v in options.items() if v is not None})


def make_model(init: Path | None, env, preset: str, backbone: str | None, imagenet: bool | None,
               input_: str | None, device):
    """The network of a checkpoint, or a new one of the preset. Raises: InputError."""
    from sim2sg_lib import checkpoint
    from sim2sg_lib.net.backbone import paper_config, quick_config
    from sim2sg_lib.net.network import SceneGraphNet

    if init:
        model = checkpoint.load(init, env, device)
        config = model.config
        if config != override(config, backbone=backbone, imagenet=imagenet, input=input_):
            weights = "ImageNet weights" if config.imagenet else "scratch"
            raise InputError(f"--init {init} is {config.backbone}, {weights}, input {config.input};"
                             " leave --backbone, --imagenet and --input out")
        return model.train()
    make_config = {"quick": quick_config, "paper": paper_config}[preset]
    categories, predicates = len(env.vocabulary.categories), len(env.vocabulary.predicates)
    size = env.presets[preset].image_size
    try:
        config = make_config(categories, predicates, *size, imagenet is not False, backbone)
    except ValueError as error:
        raise InputError(f"--scratch: {error}") from None
    return SceneGraphNet(override(config, input=input_)).to(device).train()


def make_state(model, knobs: dict, schedule: Schedule):
    """The network, the adaptation methods and their optimizers, before the first step."""
    import torch
    from sim2sg_lib import adapt
    from sim2sg_lib.training_state import TrainState, averaged

    with torch.random.fork_rng(devices=[]):  # the task draws the same numbers without methods
        methods = adapt.make(knobs, model.config).to(next(model.parameters()).device)
    body = set(map(id, model.detector.backbone.body.parameters()))
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in weights if (id(p) in body) == inside], "lr": rate}
              for inside, rate in ((False, schedule.rate),
                                   (True, schedule.rate * schedule.encoder_rate))]
    disc_groups = [{"params": list(method.parameters()), "lr": method.knobs.lr}
                   for method in methods.values() if list(method.parameters())]
    disc_optimizer = None
    if schedule.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)
        lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        if disc_groups:
            disc_optimizer = torch.optim.SGD(disc_groups, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-4, fused=True)
        # one step more than are taken, so that the last one still learns; torch divides by the
        # number of rising steps less one
        rise = max(0.1, 1.5 / (schedule.steps + 1))
        lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in groups], schedule.steps + 1, pct_start=rise)
        if disc_groups:
            disc_optimizer = torch.optim.AdamW(disc_groups)
    return TrainState(model, methods, optimizer, lr_scheduler, disc_optimizer,
                      averaged(model, schedule.ema))


def stop_if_not_finite(values: dict, step: int, names: list[str], log) -> None:
    """Raises: click.ClickException with the first NaN or infinite value and the images of it."""
    for name, value in values.items():
        if not value.isfinite():
            log.close()
            raise click.ClickException(
                f"step {step}: {name} is {value.item()} on {', '.join(names)}; stopped, nothing "
                "was overwritten")


if __name__ == "__main__":
    command_line(main)
