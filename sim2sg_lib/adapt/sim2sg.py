"""Adversarial alignment: gradient reversal (Ganin et al. 2016), D_a and D_c (Prakash et al. 2021).

Appearance alignment (section 4.2): D_a tells source from target by the encoder's features, z.
Prediction alignment (section 4.3): D_c tells them apart by the network's predictions, h(z). The
discriminators minimize their loss; the network, behind the gradient reversal, maximizes it. Domain
label 0 is synthetic, 1 is real.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from sim2sg_lib.adapt.base import Adaptation
from sim2sg_lib.net.backbone import ModelConfig
from sim2sg_lib.net.network import Outputs, SceneGraphNet, pairs_per_image

APPEARANCE_LEVELS = 3  # D_a sees the coarsest unpooled pyramid levels: P3 to P5 of a full pyramid
DISCRIMINATOR_WIDTH = 256


class ReverseGradient(torch.autograd.Function):
    """The identity forward; backward multiplies the gradient by -factor, as it is by then."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def reversal_factor(progress: float, peak: float, ramp: bool) -> float:
    """`peak`, or the ramp from 0 up to it of Ganin et al. 2016, section 5.2.2."""
    return peak * (2 / (1 + math.exp(-10 * progress)) - 1) if ramp else peak


def domain_loss(source: list[Tensor], target: list[Tensor],
                source_weights: list[Tensor] | None = None,
                target_weights: list[Tensor] | None = None) -> tuple[Tensor, float]:
    """Binary cross-entropy of logits for "real", half from each domain, and the accuracy.

    source, target: 1-D logits, one entry per image (or per level of an image). weights: in the same
    shapes, summing to 1 in each entry; uniform by default. All entries count the same, so that an
    image with many triplets does not outweigh others. Without any logit: 0 and 0.5.
    """
    losses, accuracies = [], []
    for domain, entries, weights in ((0.0, source, source_weights), (1.0, target, target_weights)):
        weights = weights or [torch.full_like(x, 1 / max(len(x), 1)) for x in entries]
        pairs = [(x, w) for x, w in zip(entries, weights) if len(x)]
        if not pairs:
            continue
        losses.append(torch.stack([
            F.binary_cross_entropy_with_logits(x, torch.full_like(x, domain), w, reduction="sum")
            for x, w in pairs]).mean())
        accuracies.append(torch.stack([(((x > 0) == bool(domain)) * w).sum()
                                       for x, w in pairs]).mean())
    if not losses:
        return torch.zeros(()), 0.5
    return torch.stack(losses).sum() / 2, float(torch.stack(accuracies).mean())


@dataclass(frozen=True)
class Knobs:
    """Settings of both methods."""

    factor: float  # gradient-reversal factor, or its peak
    ramp: bool  # whether the factor grows from 0
    lr: float  # constant learning rate of the discriminator, which must keep up with the network


class Adversary(Adaptation):
    """A discriminator behind a gradient reversal that cannot run away.

    The network maximizes the discriminator's loss up to chance level and no further: a
    discriminator that is mistaken more often than not still tells the domains apart, and its loss
    has no upper bound.
    """

    CHANCE_LOSS = math.log(2)

    def factor(self, progress: float) -> Tensor:
        """() the reversal factor, before the loss is known; `report` may set it to 0."""
        factor = reversal_factor(progress, self.knobs.factor, self.knobs.ramp)
        return torch.tensor(0.0 if self.stopped else factor)

    def report(self, name: str, result: tuple[Tensor, float], factor: Tensor
               ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What `losses` returns, for the result of domain_loss."""
        loss, accuracy = result
        factor *= loss.item() < self.CHANCE_LOSS  # in place: backward has yet to read it
        return ({f"loss_{name}": loss},
                {f"accuracy_{name}": accuracy, f"reversal_{name}": float(factor)})


class AppearanceAlignment(Adversary):
    """D_a: two 1x1 convolutions at every location of the pyramid levels, shared between levels."""

    PRESETS = {"quick": Knobs(0.2, True, 2e-3), "paper": Knobs(4.0, False, 1e-4)}

    def __init__(self, config: ModelConfig, knobs: Knobs) -> None:
        super().__init__(config, knobs)
        self.layers = start_small(nn.Sequential(
            nn.Conv2d(config.fpn_channels, DISCRIMINATOR_WIDTH, 1), nn.ReLU(),
            nn.Conv2d(DISCRIMINATOR_WIDTH, 1, 1)))

    def losses(self, model: SceneGraphNet, source: Outputs, target: Outputs, progress: float
               ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Weighted by objectness: else the ground dominates the encoder's gradient."""
        factor = self.factor(progress)
        logits, weights = ([], []), ([], [])  # (source, target)
        for name in aligned_levels(source.features):
            for domain, outputs in enumerate((source, target)):
                reversed_ = ReverseGradient.apply(outputs.features[name], factor)
                objectness = outputs.objectness[name]  # (B, h * w)
                logits[domain].extend(self.layers(reversed_).flatten(1))
                weights[domain].extend(
                    objectness / objectness.sum(1, keepdim=True).clamp(min=1e-6))
        return self.report("appearance", domain_loss(*logits, *weights), factor)


def aligned_levels(features: dict[str, Tensor]) -> list[str]:
    """The pyramid levels that D_a sees."""
    return [name for name in features if name != "pool"][-APPEARANCE_LEVELS:]


class PredictionAlignment(Adversary):
    """D_c: a two-layer perceptron over the features of one candidate triplet.

    Its gradient reaches the network through target images alone (as in Tsai et al. 2018): reversing
    it for the synthetic ones too, which have labels to learn from, makes training diverge.
    """

    PRESETS = {"quick": Knobs(0.02, True, 2e-3), "paper": Knobs(4.0, False, 1e-4)}

    def __init__(self, config: ModelConfig, knobs: Knobs) -> None:
        super().__init__(config, knobs)
        width = 2 * (config.categories + 1 + 4) + config.predicates
        self.layers = start_small(nn.Sequential(
            nn.Linear(width, DISCRIMINATOR_WIDTH), nn.ReLU(), nn.Linear(DISCRIMINATOR_WIDTH, 1)))

    def losses(self, model: SceneGraphNet, source: Outputs, target: Outputs, progress: float
               ) -> tuple[dict[str, Tensor], dict[str, float]]:
        factor = self.factor(progress)
        with torch.no_grad():  # on a copy, so that other methods find the source with gradient
            synthetic = triplet_features(source.copy())
        synthetic = [self.layers(own)[:, 0] for own in synthetic]
        real = [self.layers(ReverseGradient.apply(own, factor))[:, 0]
                for own in triplet_features(target)]
        return self.report("prediction", domain_loss(synthetic, real), factor)


def triplet_features(outputs: Outputs) -> list[Tensor]:
    """h(z): the candidate triplets of each image, (T, 2 (C + 1 + 4) + P); T may be 0.

    Class probabilities and box (x, y, w, h over the image size) of both ends, then predicates.
    """
    nodes, pairs, config = outputs.nodes, outputs.pairs, outputs.model.config
    boxes = box_convert(nodes.boxes, "xyxy", "cxcywh")
    boxes = boxes / boxes.new_tensor([config.width, config.height] * 2)
    objects = torch.cat([nodes.class_logits.softmax(1), boxes], 1)
    predicates = outputs.predicate_logits.sigmoid()
    triplets = torch.cat([objects[pairs[:, 0]], objects[pairs[:, 1]], predicates], 1)
    return list(triplets.split(pairs_per_image(nodes, pairs)))


def start_small(layers: nn.Sequential) -> nn.Sequential:
    """Weights N(0, 0.01^2), biases 0: a discriminator starts at chance level, a loss of ln 2."""
    for layer in layers:
        if not isinstance(layer, nn.ReLU):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return layers
