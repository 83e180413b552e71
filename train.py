"""Stage 2: labeled synthetic images, and unlabeled target images to align with, become a network.

\b
  python train.py --source data/clevr/sdr --out runs/clevr/0
  python train.py --source data/clevr/1 --target data/clevr/target/train --align appearance,prediction \\
      --init runs/clevr/0/model.pt --out runs/clevr/1

Writes OUT/model.pt, OUT/config.json and OUT/log.jsonl. Target labels are never opened. Interrupted, the same command goes on
where it stopped, to the same bytes.
"""
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

import envs
from sim2sg_lib.cli import (
    FloatRange, InputError, command_line, print_json, output_options, progress, log_info, stop_request)

LOG_EVERY = 10  # steps between two lines of log.jsonl, each the mean over them


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn.

    steps, batch:       optimizer steps; images of each domain in a step.
    optimizer:          "adamw" with a one-cycle learning rate, or "sgd" with momentum 0.9 and a constant one.
    rate:               learning rate of the network (the cycle's peak).
    discriminator_rate: constant learning rate of the discriminators, which must keep up with the network they judge.
    appearance_factor:  gradient-reversal factor of D_a (its peak).
    prediction_factor:  the same of D_c.
    ramp:               whether the factors grow from 0 to their peaks (Ganin et al. 2016) or are constant.
    warmup:             share of the steps before the discriminators start.
    """

    steps: int
    batch: int
    optimizer: str
    rate: float
    discriminator_rate: float
    appearance_factor: float
    prediction_factor: float
    ramp: bool
    warmup: float


SCHEDULES = {
    "quick": Schedule(400, 4, "adamw", 5e-4, 2e-3, 0.2, 0.02, True, 0.0),
    "paper": Schedule(100_000, 4, "sgd", 1e-4, 1e-4, 4.0, 4.0, False, 0.0),  # Prakash et al. 2021, implementation details
}
STATE = "state.pt"  # in a half-made run: all that a resumption needs
CLIP = 10.0  # largest gradient norm, of the network and of the discriminators
HEALTHY = (0.05, 2.0)  # beyond this loss a discriminator has won or come apart; undecided is ln 2 = 0.69


@click.command(help=__doc__, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--source", type=click.Path(path_type=Path), multiple=True, default=["data/clevr/sdr"],
              help="Labeled synthetic data set; may be given several times, the newest last.")
@click.option("--target", type=click.Path(path_type=Path), default=None, help="Folder of images to align with.")
@click.option("--align", default="", show_default="none", help="appearance, prediction, or both with a comma.")
@click.option("--init", type=click.Path(path_type=Path), default=None, help="Checkpoint to start from.")
@click.option("--out", type=click.Path(path_type=Path), default="runs/clevr/0", help="Run folder to write.")
@click.option("--preset", type=click.Choice(list(SCHEDULES)), default="quick",
              help="Network, input size and schedule: minutes on two cores, or the paper's; with --init the schedule alone.")
@click.option("--backbone", type=click.Choice(["resnet101", "resnet50", "resnet18"]), default=None,
              show_default="the preset's", help="Encoder.")
@click.option("--imagenet/--scratch", default=None, show_default="the preset's",
              help="ImageNet weights and frozen batch norm, or random weights and group norm.")
@click.option("--input", "input_", type=click.Choice(["edges", "rgb"]), default=None,
              show_default="edges from scratch, rgb with ImageNet weights", help="What the encoder sees of an image.")
@click.option("--steps", type=click.IntRange(1), default=None, show_default="the preset's", help="Optimizer steps.")
@click.option("--appearance-factor", type=FloatRange(0), default=None, show_default="the preset's",
              help="Gradient-reversal factor of the appearance discriminator.")
@click.option("--prediction-factor", type=FloatRange(0), default=None, show_default="the preset's",
              help="Gradient-reversal factor of the prediction discriminator.")
@click.option("--warmup", type=FloatRange(0, 1, max_open=True), default=None, show_default="the preset's",
              help="Share of the steps before the discriminators start.")
@click.option("--augment", type=click.Choice(["none", "color"]), default="none", help="Augment the source's colors.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Same seed and thread count: same bytes.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that is not empty.")
@click.option("--resume/--no-resume", default=True, help="Go on where the same command was interrupted, or start anew.")
@click.option("--save-every", type=click.IntRange(1), default=200, help="Steps between two savings of what a resumption needs.")
@output_options
def main(source: tuple[Path, ...], target: Path | None, align: str, init: Path | None, out: Path, preset: str,
         backbone: str | None, imagenet: bool | None, input_: str | None, steps: int | None,
         appearance_factor: float | None, prediction_factor: float | None, warmup: float | None, augment: str, seed: int,
         device: str, overwrite: bool, resume: bool, save_every: int) -> None:
    # --- setup: the library is imported here, so that --help answers at once
    import torch
    from sim2sg_lib import checkpoint
    from sim2sg_lib.adapt.sim2sg import Discriminators
    from sim2sg_lib.dataset import LabeledImages, TargetImages
    from sim2sg_lib.io.reading import read_json
    from sim2sg_lib.io.files import write_json
    from sim2sg_lib.io.folders import digest, finished, note_finished, refuse_early, work_folder

    start = time.perf_counter()
    torch.manual_seed(seed)
    terms = parse_align(align, target)
    schedule = override(SCHEDULES[preset], steps=steps, appearance_factor=appearance_factor,
                        prediction_factor=prediction_factor, warmup=warmup)
    refuse_early(out, overwrite, [*source, target, init])
    first = source[0] / "dataset.json"
    device, env = checkpoint.pick_device(device), envs.find(read_json(first).get("env"), f"{first}: env")

    # --- model and data
    model = make_model(init, env, preset, backbone, imagenet, input_, device)
    width, height = model.config.width, model.config.height
    synthetic = LabeledImages(source, env, width, height)
    real = TargetImages(target, env, width, height) if terms else None
    discriminators = Discriminators(terms, model.config).to(device) if terms else None
    options = {"command": "python " + shlex.join(sys.argv), "env": env.name, "source": [str(s) for s in source],
               "target": str(target) if target else None, "align": list(terms), "init": str(init) if init else None,
               "preset": preset, "augment": augment, "seed": seed, "schedule": asdict(schedule),
               "model": asdict(model.config), **checkpoint.runtime_info(device)}
    log_info(f"{env.name} | {model.config.backbone} {width}x{height}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"
        f" weights | {len(synthetic)} synthetic images, {len(real) if real else 0} of the target | "
        f"align {align or 'none'} | {schedule.steps} steps | seed {seed} | {device} -> {out}")

    # --- learn, save
    inputs = [folder / name for folder in source for name in ("dataset.json", "graphs.jsonl")] + ([init] if init else [])
    inputs += synthetic.paths + (real.paths if real else [])
    with work_folder(out, options | {"input": digest(*inputs)}, overwrite, resume) as partial:
        summary = finished(partial)
        if summary is None:
            write_json(partial / "config.json", options)
            learner = Learner(model, discriminators, schedule, augment == "color", seed)
            log = learn(learner, synthetic, real, seed, partial, save_every, device, start)
            checkpoint.save(partial / "model.pt", model, env, options)
            summary = {"loss": round(log.last_loss, 6), "seconds": round(time.perf_counter() - log.start, 1)}
            write_json(partial / "config.json", options | {"seconds": summary["seconds"]})
            note_finished(partial, summary)
        (partial / STATE).unlink(missing_ok=True)
    print_json({"out": str(out), "env": env.name, "steps": schedule.steps, **summary})


def learn(learner: "Learner", synthetic, real, seed: int, partial: Path, save_every: int, device, start: float) -> "TrainingLog":
    """The inner loop of Algorithm 1, from where an interruption left it. Returns the log, which knows the loss at the end.

    synthetic, real: the data sets; real is None without alignment. start: of the program, in seconds of its clock.
    Errors: click.ClickException for a loss or a gradient that is not finite.
    """
    from sim2sg_lib.dataset import loader

    schedule, log = learner.schedule, TrainingLog(partial / "log.jsonl", learner.schedule.batch, start)
    begun = learner.restore(partial / STATE, log, device)
    source_batches = loader(synthetic, schedule.batch, schedule.steps, seed, device, begun)
    target_batches = (loader(real, schedule.batch, schedule.steps, seed + 1, device, begun) if real
                      else [(None, [])] * (schedule.steps - begun))
    with stop_request() as asked, progress(schedule.steps, "train", "step", done=begun) as bar:
        for step, (source, (target_images, target_names)) in enumerate(zip(source_batches, target_batches), begun):
            if step == begun:  # now that the loaders have drawn their own seeds
                learner.restore_random()
            images, targets, names = source
            losses, notes = learner.losses(step, images, targets, target_images)
            stop_if_not_finite(losses, step, names + target_names, log)
            stop_if_not_finite(learner.backward(losses, step), step, names + target_names, log)
            learner.update(step)
            log.add(step, {k: v.item() for k, v in losses.items()} | notes)
            bar.set_postfix_str(f"loss {log.last_loss:.3f}", refresh=False)
            bar.update()
            if asked or (step + 1) % save_every == 0 and step + 1 < schedule.steps:
                learner.save(partial / STATE, step + 1, log)
            if asked:
                raise asked[0]
    log.close()
    return log


class Learner:
    """All that a step of training changes, so that it can be put aside and taken up again.

    discriminators: None without alignment.
    """

    def __init__(self, model, discriminators, schedule: Schedule, augment: bool, seed: int) -> None:
        import torch
        self.model, self.discriminators, self.schedule, self.augment = model, discriminators, schedule, augment
        self.optimizer, self.learning_rate = make_optimizer(model, schedule)
        self.judge = make_judge(discriminators, schedule) if discriminators else None
        self.colors = torch.Generator().manual_seed(seed)
        self.random = None  # what `restore` found

    def adversarial(self, step: int) -> bool:
        return self.discriminators is not None and step >= self.schedule.warmup * self.schedule.steps

    def losses(self, step: int, images, targets: list, target_images) -> tuple[dict, dict]:
        """The task's losses on synthetic images, and both domains past the discriminators; what else the log should say."""
        import torch
        from sim2sg_lib.adapt.sim2sg import reversal_factor
        schedule = self.schedule
        images = augment_colors(images, self.colors) if self.augment else images
        together = torch.cat([images, target_images]) if self.adversarial(step) else images
        features = self.model.features(together)
        losses = self.model.losses({k: level[:len(images)] for k, level in features.items()}, targets)
        notes = {"rate": self.optimizer.param_groups[0]["lr"]}
        if self.adversarial(step):
            growth = reversal_factor(step, schedule.steps, 1.0, schedule.warmup, schedule.ramp)
            judged, accuracies = self.discriminators(self.model, features, growth * schedule.appearance_factor,
                                                     growth * schedule.prediction_factor)
            losses |= judged
            notes |= accuracies | {"reversal": growth}
        return losses, notes

    def learning(self, step: int) -> dict:
        """name -> (module, optimizer) of what this step changes."""
        network = {"network": (self.model, self.optimizer)}
        return network | ({"discriminators": (self.discriminators, self.judge)} if self.adversarial(step) else {})

    def backward(self, losses: dict, step: int) -> dict:
        """The gradients, clipped module by module. Returns what their norms were."""
        import torch
        learning = self.learning(step)
        for _, optimizer in learning.values():
            optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        return {f"the gradient of the {name}": torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
                for name, (module, _) in learning.items()}

    def update(self, step: int) -> None:
        """One step of the optimizers."""
        for _, optimizer in self.learning(step).values():
            optimizer.step()
        self.learning_rate.step()

    def parts(self) -> dict:
        parts = {"model": self.model, "optimizer": self.optimizer, "learning_rate": self.learning_rate}
        return parts | ({"discriminators": self.discriminators, "judge": self.judge} if self.discriminators else {})

    def save(self, path: Path, done: int, log: "TrainingLog") -> None:
        """What a resumption after `done` steps needs."""
        import torch
        from sim2sg_lib import checkpoint
        random = {"cpu": torch.get_rng_state(), "colors": self.colors.get_state(), "cuda": torch.cuda.get_rng_state_all()}
        checkpoint.write(path, {"done": done, "parts": {name: part.state_dict() for name, part in self.parts().items()},
                                "random": random, "log": log.state()})

    def restore(self, path: Path, log: "TrainingLog", device) -> int:
        """Take up what `save` put aside. Returns the steps done, 0 if there is nothing. Errors: InputError."""
        from sim2sg_lib import checkpoint
        if not path.exists():
            log.restore({"bytes": 0})
            return 0
        state = checkpoint.read_archive(path, device)
        for name, part in self.parts().items():
            part.load_state_dict(state["parts"][name])
        log.restore(state["log"])
        self.random = state["random"]
        return state["done"]

    def restore_random(self) -> None:
        """The generators as they were, if this is a resumption."""
        import torch
        if self.random:
            torch.set_rng_state(self.random["cpu"].cpu())
            self.colors.set_state(self.random["colors"].cpu())
            torch.cuda.set_rng_state_all([state.cpu() for state in self.random["cuda"]])


def parse_align(align: str, target: Path | None) -> tuple[str, ...]:
    """ "appearance,prediction" -> its parts. Errors: InputError."""
    terms = tuple(term.strip() for term in align.split(",") if term.strip())
    for term in terms:
        if term not in ("appearance", "prediction"):
            raise InputError(f"--align: {term!r} is not appearance or prediction")
    if terms and target is None:
        raise InputError("--align needs --target, the images to align with")
    if target and not terms:
        raise InputError("--target is used by --align alone: add --align appearance,prediction or leave it out")
    return terms


def override(preset, **options):
    """A preset with the options that were given."""
    return replace(preset, **{name: value for name, value in options.items() if value is not None})


def make_model(init: Path | None, env, preset: str, backbone: str | None, imagenet: bool | None, input_: str | None,
               device):
    """The network from a checkpoint, or a new one of the preset. Errors: InputError."""
    from sim2sg_lib import checkpoint
    from sim2sg_lib.net.backbone import paper_config, quick_config
    from sim2sg_lib.net.relations import SceneGraphNet

    if init:
        model = checkpoint.load(init, env, device)
        config = override(model.config, backbone=backbone, imagenet=imagenet, input=input_)
        if config != model.config:
            raise InputError(f"--init {init} is {model.config.backbone}, "
                             f"{'ImageNet weights' if model.config.imagenet else 'scratch'}, input {model.config.input}; "
                             "leave --backbone, --imagenet and --input out")
        return model.train()
    make_config = {"quick": quick_config, "paper": paper_config}[preset]
    config = make_config(len(env.vocabulary.categories), len(env.vocabulary.predicates), *env.presets[preset].image_size)
    config = override(config, backbone=backbone, imagenet=imagenet)
    config = override(config, input=input_ or ("rgb" if config.imagenet else "edges"))
    return SceneGraphNet(config).to(device).train()


def make_optimizer(model, schedule: Schedule):
    """The network's optimizer and its learning-rate schedule."""
    import torch
    weights = [p for p in model.parameters() if p.requires_grad]
    if schedule.optimizer == "sgd":
        optimizer = torch.optim.SGD(weights, schedule.rate, momentum=0.9, weight_decay=1e-4)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    optimizer = torch.optim.AdamW(weights, schedule.rate, weight_decay=1e-4)
    # one step more than are taken, so that the last one still learns; torch divides by the rise less one
    rise = max(0.1, 1.5 / (schedule.steps + 1))
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.rate, schedule.steps + 1, pct_start=rise)


def make_judge(discriminators, schedule: Schedule):
    """The discriminators' own optimizer, of the network's kind."""
    import torch
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(discriminators.parameters(), schedule.discriminator_rate, momentum=0.9)
    return torch.optim.AdamW(discriminators.parameters(), schedule.discriminator_rate)


def augment_colors(images, generator):
    """Each image's channels in random order, scaled and shifted: images (B, 3, H, W) in [0, 1]."""
    import torch
    order = torch.rand(len(images), 3, generator=generator).argsort(1).to(images.device)
    gain = 0.6 + 0.8 * torch.rand(len(images), 3, 1, 1, generator=generator)
    shift = 0.3 * (torch.rand(len(images), 3, 1, 1, generator=generator) - 0.5)
    shuffled = images.gather(1, order[:, :, None, None].expand_as(images))
    return (shuffled * gain.to(images.device) + shift.to(images.device)).clamp(0, 1)


def stop_if_not_finite(values: dict, step: int, names: list[str], log: "TrainingLog") -> None:
    """Errors: click.ClickException that names the first value that is NaN or infinite, and the images behind it."""
    for name, value in values.items():
        if not value.isfinite():
            log.close()
            raise click.ClickException(f"step {step}: {name} is {value.item()} on {', '.join(names)}; stopped, "
                                       "nothing was overwritten")


class TrainingLog:
    """log.jsonl: one line every LOG_EVERY steps, each number the mean over them, with images a second."""

    def __init__(self, path: Path, batch: int, start: float) -> None:
        from sim2sg_lib.io.files import open_log
        self.file, self.batch, self.start = open_log(path), batch, start
        self.rows, self.step, self.since, self.last_loss = [], 0, time.perf_counter(), float("nan")
        self.warned: set[str] = set()

    def add(self, step: int, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.step = step
        self.last_loss = sum(v for k, v in row.items() if k.startswith("loss"))
        if (step + 1) % LOG_EVERY == 0:
            self.write()

    def write(self) -> None:
        from sim2sg_lib.io.files import add_line
        now = time.perf_counter()
        mean = {k: round(sum(row[k] for row in self.rows if k in row) / sum(k in row for row in self.rows), 6)
                for k in self.rows[-1]}
        speed = self.batch * len(self.rows) / (now - self.since)
        line = {"step": self.step + 1, **mean, "images_per_s": round(speed, 2)}
        add_line(self.file, line)
        self.rows, self.since = [], now
        self.warn(mean)

    def warn(self, mean: dict[str, float]) -> None:
        """Say once of a discriminator that it does not play the game any more (docs/tutorial.md, section 4)."""
        for term in ("appearance", "prediction"):
            loss = mean.get(f"loss_{term}", 1.0)
            if term in self.warned or HEALTHY[0] <= loss <= HEALTHY[1]:
                continue
            self.warned.add(term)
            state, remedy = ("is always right", "larger") if loss < HEALTHY[0] else ("has come apart", "smaller")
            log_info(f"step {self.step + 1}: loss_{term} {loss:.3g}, undecided is 0.69: the discriminator {state}, try a {remedy} "
                f"--{term}-factor")

    def state(self) -> dict:
        """How long the file is, on the disk, the rows that are not in it yet, and what the end will ask for."""
        from sim2sg_lib.io.files import writing
        with writing(self.file.name):
            os.fsync(self.file.fileno())
        return {"bytes": self.file.seek(0, os.SEEK_END), "rows": self.rows, "step": self.step, "last_loss": self.last_loss,
                "seconds": time.perf_counter() - self.start}

    def restore(self, state: dict) -> None:
        """Drop the lines of steps that will be taken again. state: of `state`, or the bytes alone."""
        from sim2sg_lib.io.files import writing
        with writing(self.file.name):
            self.file.truncate(state["bytes"])
        self.rows, self.step = state.get("rows", []), state.get("step", 0)
        self.last_loss = state.get("last_loss", self.last_loss)
        self.start -= state.get("seconds", 0.0)

    def close(self) -> None:
        if self.rows:
            self.write()
        self.file.close()


if __name__ == "__main__":
    command_line(main)
