"""Adversarial alignment: gradient reversal (Ganin et al. 2016) and the two discriminators of Prakash et al. 2021.

Appearance alignment (section 4.2): D_a tells source from target by the encoder's features, z.
Prediction alignment (section 4.3): D_c tells them apart by what the network says, h(z).
The discriminators descend on their loss, the network behind the reversal ascends on it. Domain 0 is synthetic, 1 real.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels (B, C, h, w) -> logits (B, h * w) for "real", level by level."""
        return [self.layers(level).flatten(1) for level in features]


class PredictionDiscriminator(nn.Module):
    """D_c: a two-layer perceptron over tokens, one token a candidate triplet."""

    def __init__(self, token_width: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(token_width, width), nn.ReLU(), nn.Linear(width, 1))
        start_small(self)

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Per image (T, D), T may be 0 -> logits (T,) for "real"."""
        return [self.layers(t)[:, 0] for t in tokens]


def start_small(module: nn.Module) -> None:
    """Weights N(0, 0.01), biases 0: a discriminator starts undecided, at a loss of ln 2."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


def domain_loss(source: list[Tensor], target: list[Tensor]) -> tuple[Tensor, float]:
    """Binary cross-entropy of "real" logits, half from each domain, and the accuracy.

    source, target: lists of logits (levels or images). Each list entry counts the same, so neither a large level nor
    an image with many tokens outweighs the others; empty entries are left out. No token at all gives 0 and accuracy 0.5.
    """
    losses, rights = [], []
    for logits, domain in ((source, 0.0), (target, 1.0)):
        logits = [x for x in logits if x.numel()]
        if not logits:
            continue
        losses.append(torch.stack([F.binary_cross_entropy_with_logits(x, torch.full_like(x, domain))
                                   for x in logits]).mean())
        rights.append(torch.stack([((x > 0) == bool(domain)).float().mean() for x in logits]).mean())
    if not losses:
        return torch.zeros(()), 0.5
    return torch.stack(losses).sum() / 2, float(torch.stack(rights).mean())


def reversal_factor(step: int, steps: int, peak: float, warmup: float) -> float:
    """0 for the first `warmup` share of the steps, then the ramp of Ganin et al. 2016 (section 5.2.2) up to `peak`."""
    progress = (step / max(steps, 1) - warmup) / max(1 - warmup, 1e-9)
    return peak * (2 / (1 + math.exp(-10 * progress)) - 1) if progress > 0 else 0.0
