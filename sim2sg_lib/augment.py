"""Random changes of images before the encoder, alike for every row and both domains."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENTATIONS = ("none", "color", "full", "strong")
NOISE_CELLS = (4, 90)  # of the noise's grid, per axis


def augment(images: Tensor, kind: str, seed: tuple[int, ...]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], changed; each one draws its own numbers.

    kind: one of AUGMENTATIONS. "color": channels in random order, scaled and shifted. "full":
          gamma, contrast, smooth noise and blur, which change edges and shading, too. "strong":
          "color", then "full". "none": the images as they are.
    seed: all that the numbers depend on, so that no state has to be kept to resume.
    """
    generator = np.random.default_rng(seed)
    if kind in ("color", "strong"):
        images = change_colors(images, generator)
    if kind in ("full", "strong"):
        images = change_appearance(images, generator)
    return images


def change_colors(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Channels of each image in random order, scaled and shifted."""
    order = torch.from_numpy(generator.random((len(images), 3)).argsort(1)).to(images.device)
    gain, shift = (torch.from_numpy(generator.uniform(low, high, (len(images), 3, 1, 1))).to(images)
                   for low, high in ((0.6, 1.4), (-0.15, 0.15)))
    shuffled = images.gather(1, order[:, :, None, None].expand_as(images))
    return (shuffled * gain + shift).clamp(0, 1)


def change_appearance(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Gamma 2^U(-.7, .7), contrast U(.6, 1.2), noise of amplitude U(0, .15), blur by U(0, 1)."""
    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(generator.uniform(low, high, (len(images), 1, 1, 1))).to(images)

    images = images ** (2 ** draw(-0.7, 0.7))
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + draw(0.6, 1.2) * (images - mean)
    images = images + draw(0, 0.15) * smooth_noise(images, generator)
    return images.lerp(blurred(images), draw(0, 1)).clamp(0, 1)


def smooth_noise(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Numbers from -1 to 1 per channel on a grid of each image's own, bicubic in between."""
    height, width = images.shape[2:]
    noise = []
    for _ in images:
        rows, columns = generator.integers(NOISE_CELLS[0], NOISE_CELLS[1] + 1, 2)
        grid = generator.uniform(-1, 1, (1, 3, min(rows, height), min(columns, width)))
        noise.append(F.interpolate(torch.from_numpy(grid).to(images), (height, width),
                                   mode="bicubic"))
    return torch.cat(noise)


def blurred(images: Tensor) -> Tensor:
    """By the binomial filter 1 4 6 4 1 along each axis; the border is repeated."""
    taps = 1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    rows = sum(tap * padded[:, :, :, i:i + images.shape[3]] for i, tap in enumerate(taps))
    return sum(tap * rows[:, :, i:i + images.shape[2]] for i, tap in enumerate(taps))
