"""Adversarial alignment: gradient reversal (Ganin et al. 2016) and the two discriminators of Prakash et al. 2021.

Appearance alignment (section 4.2): D_a tells source from target by the encoder's features, z.
Prediction alignment (section 4.3): D_c tells them apart by what the network says, h(z).
The discriminators descend on their loss, the network behind the reversal ascends on it. Domain 0 is synthetic, 1 real.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sim2sg_lib.net.backbone import ModelConfig
from sim2sg_lib.net.relations import SceneGraphNet

APPEARANCE_LEVELS = 3  # the coarsest unpooled pyramid levels, P3 to P5 of a full pyramid, are what D_a sees


class ReverseGradient(torch.autograd.Function):
    """The identity forward; backward multiplies the gradient by -factor."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


class AppearanceDiscriminator(nn.Module):
    """D_a: two 1x1 convolutions over every location of the pyramid levels, shared between levels."""

    def __init__(self, channels: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        start_small(self)

    def forward(self, level: Tensor) -> Tensor:
        """One pyramid level (B, C, h, w) -> logits (B, h * w) for "real"."""
        return self.layers(level).flatten(1)


class PredictionDiscriminator(nn.Module):
    """D_c: a two-layer perceptron over tokens, one token a candidate triplet."""

    def __init__(self, token_width: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(token_width, width), nn.ReLU(), nn.Linear(width, 1))
        start_small(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """One image's tokens (T, D), T may be 0 -> logits (T,) for "real"."""
        return self.layers(tokens)[:, 0]


def start_small(module: nn.Module) -> None:
    """Weights N(0, 0.01), biases 0: a discriminator starts undecided, at a loss of ln 2."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


def domain_loss(source: list[Tensor], target: list[Tensor], source_weights: list[Tensor] | None = None,
                target_weights: list[Tensor] | None = None) -> tuple[Tensor, float]:
    """Binary cross-entropy of "real" logits, half from each domain, and the accuracy.

    source, target: 1-D logits, one entry an image (or an image's level); weights: as many, summing to 1 in an entry, by
    default all alike. Each entry counts the same, so an image with many tokens does not outweigh the others; empty
    entries are left out. No logit at all gives 0 and accuracy 0.5.
    """
    losses, rights = [], []
    for domain, entries, weights in ((0.0, source, source_weights), (1.0, target, target_weights)):
        weights = weights or [torch.full_like(x, 1 / max(len(x), 1)) for x in entries]
        pairs = [(x, w) for x, w in zip(entries, weights) if len(x)]
        if not pairs:
            continue
        losses.append(torch.stack([F.binary_cross_entropy_with_logits(x, torch.full_like(x, domain), w, reduction="sum")
                                   for x, w in pairs]).mean())
        rights.append(torch.stack([(((x > 0) == bool(domain)) * w).sum() for x, w in pairs]).mean())
    if not losses:
        return torch.zeros(()), 0.5
    return torch.stack(losses).sum() / 2, float(torch.stack(rights).mean())


def reversal_factor(step: int, steps: int, peak: float, warmup: float, ramp: bool) -> float:
    """0 for the first `warmup` share of the steps, then `peak`, or the ramp up to it of Ganin et al. 2016, section 5.2.2."""
    progress = (step / steps - warmup) / (1 - warmup)
    if progress < 0:
        return 0.0
    return peak * (2 / (1 + math.exp(-10 * progress)) - 1) if ramp else peak


class Discriminators(nn.Module):
    """The discriminators in use, behind their gradient reversals."""

    def __init__(self, terms: tuple[str, ...], config: ModelConfig) -> None:
        super().__init__()
        self.appearance = AppearanceDiscriminator(config.fpn_channels) if "appearance" in terms else None
        token_width = 2 * (config.categories + 1 + 4) + config.predicates
        self.prediction = PredictionDiscriminator(token_width) if "prediction" in terms else None

    def forward(self, model: SceneGraphNet, features: dict[str, Tensor], appearance_factor: float,
                prediction_factor: float) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The adversarial losses of one step, and the discriminators' accuracies.

        features: pyramid levels of a batch whose first half is synthetic and whose second half is real.
        """
        losses, accuracies = {}, {}
        if self.appearance:
            losses["loss_appearance"], accuracies["accuracy_appearance"] = self.judge_appearance(
                model, features, appearance_factor)
        if self.prediction:
            losses["loss_prediction"], accuracies["accuracy_prediction"] = self.judge_predictions(
                model, features, prediction_factor)
        return losses, accuracies

    def judge_appearance(self, model: SceneGraphNet, features: dict[str, Tensor], factor: float) -> tuple[Tensor, float]:
        """Every location counts as much as the network believes, without labels, that an object is there.

        Otherwise the ground, nearly all of an image and easy to tell apart, is all that the encoder hears of.
        """
        half, objectness = len(features["0"]) // 2, model.detector.objectness(features)
        logits, weights = ([], []), ([], [])  # (source, target)
        for name in [name for name in features if name != "pool"][-APPEARANCE_LEVELS:]:
            judged = self.appearance(ReverseGradient.apply(features[name], factor))  # (B, h * w)
            shares = objectness[name] / objectness[name].sum(1, keepdim=True).clamp(min=1e-6)
            for domain, own in enumerate((slice(None, half), slice(half, None))):
                logits[domain].extend(judged[own])
                weights[domain].extend(shares[own])
        return domain_loss(*logits, *weights)

    def judge_predictions(self, model: SceneGraphNet, features: dict[str, Tensor], factor: float) -> tuple[Tensor, float]:
        """D_c sees both domains, but only the real images' predictions are moved (as in Tsai et al. 2018).

        The synthetic ones have labels to learn from: pushed towards the target's mistakes as well, training diverges.
        """
        half = len(features["0"]) // 2
        with torch.no_grad():
            source = model.tokens({name: level[:half] for name, level in features.items()})
        target = model.tokens({name: level[half:] for name, level in features.items()})
        return domain_loss([self.prediction(tokens) for tokens in source],
                           [self.prediction(ReverseGradient.apply(tokens, factor)) for tokens in target])
