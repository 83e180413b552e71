"""The interface of adaptation methods."""
import torch
from torch import Tensor, nn

from sim2sg_lib.net.backbone import ModelConfig
from sim2sg_lib.net.network import Outputs, SceneGraphNet


class Adaptation(nn.Module):
    """What one method does with unlabeled target images in a training step.

    It never sees a label of either domain; a gradient reversal, if it needs one, is inside it.

    PRESETS:     preset -> default knobs, a frozen dataclass of booleans and of numbers >= 0. A
                 method with parameters of its own has a knob `lr`, their learning rate.
    CHANCE_LOSS: loss of a discriminator that cannot tell the domains apart; None without one.
    stopped:     set for the rest of a run once that loss is far off: a discriminator that is always
                 right or has diverged must not move the network any more.
    """

    PRESETS: dict = {}
    CHANCE_LOSS: float | None = None

    def __init__(self, config: ModelConfig, knobs) -> None:
        super().__init__()
        self.knobs = knobs
        self.register_buffer("stopped", torch.tensor(False))

    def losses(self, model: SceneGraphNet, source: Outputs, target: Outputs, progress: float
               ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Losses to add to the task's, named loss_*, and other numbers for the log.

        progress: 0 at the first step with adaptation, below 1 at the last.
        """
        raise NotImplementedError
