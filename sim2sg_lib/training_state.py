"""The log of a training run, and the state from which it resumes after an interruption."""
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sim2sg_lib import checkpoint
from sim2sg_lib.cli import log_info
from sim2sg_lib.io.files import add_line, open_log, writing
from sim2sg_lib.net.network import SceneGraphNet

LOG_EVERY = 10  # steps per line of log.jsonl
LOSS_RANGE = (0.07, 3.0)  # of a discriminator, in multiples of its loss at chance level


class TrainingLog:
    """log.jsonl: one line per LOG_EVERY steps, with means over them and images per second.

    start:         time.perf_counter() when the program started.
    chance_losses: method with a discriminator -> that discriminator's loss at chance level.
    """

    def __init__(self, path: Path, batch: int, start: float,
                 chance_losses: dict[str, float] | None = None) -> None:
        self.file, self.batch, self.start = open_log(path), batch, start
        self.rows, self.step, self.since = [], 0, time.perf_counter()
        self.last_loss = float("nan")
        self.chance_losses = dict(chance_losses or {})

    def add(self, step: int, row: dict[str, float]) -> list[str]:
        """The losses (loss_*) and other numbers of one step.

        Returns the methods whose discriminator turns out to be of no use any more, each once.
        """
        self.rows.append(row)
        self.step = step
        self.last_loss = sum(v for k, v in row.items() if k.startswith("loss"))
        return self._write() if (step + 1) % LOG_EVERY == 0 else []

    def _write(self) -> list[str]:
        now, values = time.perf_counter(), {}
        for name in self.rows[-1]:
            column = [row[name] for row in self.rows if name in row]
            values[name] = round(sum(column) / len(column), 6)
        speed = round(self.batch * len(self.rows) / (now - self.since), 2)
        add_line(self.file, {"step": self.step + 1, **values, "images_per_s": speed})
        self.rows, self.since = [], now
        return self._runaways(values)

    def _runaways(self, values: dict[str, float]) -> list[str]:
        """Discriminators that have saturated or diverged (docs/tutorial.md, 4), with a line."""
        found = []
        for name, chance in list(self.chance_losses.items()):
            loss = values.get(f"loss_{name}", chance)
            if LOSS_RANGE[0] <= loss / chance <= LOSS_RANGE[1]:
                continue
            del self.chance_losses[name]
            found.append(name)
            state, remedy = (("is always right", "larger") if loss < chance
                             else ("has diverged", "smaller"))
            log_info(f"step {self.step + 1}: loss_{name} {loss:.3g}, chance level is {chance:.2f}: "
                     f"the discriminator {state}, so its reversal factor is 0 from now on; try a "
                     f"{remedy} --set {name}.factor")
        return found

    def state(self) -> dict:
        """The length of the file, after flushing it to disk, and what is not yet in it."""
        with writing(self.file.name):
            os.fsync(self.file.fileno())
        return {"bytes": self.file.seek(0, os.SEEK_END), "rows": self.rows, "step": self.step,
                "last_loss": self.last_loss, "seconds": time.perf_counter() - self.start}

    def restore(self, state: dict) -> None:
        """Continue from `state`, or from {"bytes": 0}; drops the lines of steps after it."""
        with writing(self.file.name):
            self.file.truncate(state["bytes"])
        self.rows, self.step = state.get("rows", []), state.get("step", 0)
        self.last_loss = state.get("last_loss", self.last_loss)
        self.start -= state.get("seconds", 0.0)

    def close(self) -> None:
        if self.rows:
            self._write()
        self.file.close()


def averaged(model: SceneGraphNet, decay: float) -> AveragedModel:
    """The exponential moving average of a model's weights; `module` is the averaged model.

    The early weights of a run count little: after n steps the decay is (1 + n) / (10 + n) at most.
    """
    @torch.no_grad()
    def average(means: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
        torch._foreach_lerp_(means, weights, 1 - min(decay, (1 + int(steps)) / (10 + int(steps))))

    return AveragedModel(model, multi_avg_fn=average)


@dataclass
class TrainState:
    """All that a training step changes.

    methods:        adaptation methods by name; may be empty.
    disc_optimizer: of the methods' own parameters; None if they have none.
    averaged:       average of the model's weights, see `averaged`: what the run is for.
    """

    model: SceneGraphNet
    methods: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    disc_optimizer: torch.optim.Optimizer | None
    averaged: AveragedModel
    random: dict | None = None  # set by `restore`

    def _parts(self) -> dict:
        names = ("model", "methods", "optimizer", "lr_scheduler", "disc_optimizer", "averaged")
        parts = {name: getattr(self, name) for name in names}
        return {name: part for name, part in parts.items() if part is not None}

    def save(self, path: Path, done: int, log: TrainingLog) -> None:
        """Write everything needed to resume after `done` steps."""
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        checkpoint.write(path, {"done": done, "parts": parts, "random": random, "log": log.state()})

    def restore(self, path: Path, log: TrainingLog, device: torch.device) -> int:
        """Continue from `save`. Returns the steps done, 0 without a file. Raises: InputError."""
        if not path.exists():
            log.restore({"bytes": 0})
            return 0
        state = checkpoint.read_archive(path, device)
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        for name, method in self.methods.items():
            if method.stopped:
                log.chance_losses.pop(name, None)
        log.restore(state["log"])
        self.random = state["random"]
        return state["done"]

    def restore_random(self) -> None:
        """Set the random generators to their saved states, if this run was resumed."""
        if self.random:
            torch.set_rng_state(self.random["cpu"].cpu())
            torch.cuda.set_rng_state_all([state.cpu() for state in self.random["cuda"]])
