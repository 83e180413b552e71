"""Procedural textures: patterns in [0, 1] that blend in a second color."""
import math

import torch
from torch import Tensor

from sim2sg_lib.scene import PATTERNS
from sim2sg_lib.sim.meshes import Textures
from sim2sg_lib.sim.tensor_ops import mix, pick


def textured(color: Tensor, textures: Textures, index: Tensor, points: Tensor) -> Tensor:
    """color (N, 3) with texture index (N,) of `textures` blended in at points (N, 3), meters."""
    patterns = set(textures.pattern.tolist())
    if len(patterns) == 1:
        return patterned(patterns.pop(), color, index, points, textures)
    for pattern in patterns:
        chosen = (textures.pattern.index_select(0, index) == pattern).nonzero()[:, 0]
        blended = patterned(pattern, *pick(chosen, color, index, points), textures)
        color = color.index_copy(0, chosen, blended)
    return color


def patterned(pattern: int, color: Tensor, index: Tensor, points: Tensor, textures: Textures) -> Tensor:
    """`textured` where all textures have the same pattern, PATTERNS[pattern]; -1 for none."""
    if pattern < 0 or len(points) == 0:
        return color
    chosen = textures.select(index)
    weight = PATTERN[PATTERNS[pattern]](points / chosen.scale_m[:, None], chosen.seed)
    return mix(color, chosen.color, (weight * chosen.amount)[:, None])


def noise(points: Tensor, seed: Tensor) -> Tensor:
    """(..., 3) points, seeds broadcastable to (...) -> (...) in [0, 1]: value noise of two octaves."""
    return (2 * value_noise(points, seed) + value_noise(points * 4, seed)) / 3


def checks(points: Tensor, seed: Tensor) -> Tensor:
    """A board of unit squares, on every side of a solid."""
    return (points + 1e-4).floor().sum(-1) % 2  # sides on the lattice belong to the cells outside


def wood(points: Tensor, seed: Tensor) -> Tensor:
    """Wavy rings around z, one unit wide: a trunk that any plane may cut."""
    radius = (points[:, :2] ** 2).sum(-1).clamp(min=1e-12).sqrt() + 0.6 * noise(points * 0.7, seed)
    return (0.5 - 0.5 * (2 * math.pi * radius).cos()) ** 2


def brick(points: Tensor, seed: Tensor) -> Tensor:
    """Mortar between bricks of 1 by 1/3 units; every other row is offset by half."""
    row = (points[:, 2] * 3).floor()
    along = points[:, 0] + points[:, 1] + 0.5 * (row % 2)
    joint = ((along % 1) < 0.06) | ((points[:, 2] * 3 % 1) < 0.15)
    brick_value = 0.3 * lattice(along.floor().long(), row.long(), torch.zeros_like(seed), seed)
    return torch.where(joint, 1.0, brick_value.to(points.dtype))


def asphalt(points: Tensor, seed: Tensor) -> Tensor:
    """Fine grains with coarse stains."""
    return 0.7 * value_noise(points * 12, seed) ** 2 + 0.3 * value_noise(points * 0.5, seed + 1)


def grass(points: Tensor, seed: Tensor) -> Tensor:
    """Blades: noise stretched along one direction, in patches."""
    blades = value_noise(points * points.new_tensor([20.0, 4.0, 4.0]), seed)
    return blades * (0.4 + 0.6 * value_noise(points, seed + 1))


PATTERN = dict(zip(PATTERNS, (noise, checks, wood, brick, asphalt, grass)))


def value_noise(points: Tensor, seed: Tensor) -> Tensor:
    """(N, 3) points, (N,) seeds -> (N,) in [0, 1]: lattice noise, blended by smoothstep."""
    cell, blend = [], []
    for along in points.movedim(-1, 0).contiguous():
        cell.append(along.floor())
        blend.append((along - cell[-1]) ** 2 * (3 - 2 * (along - cell[-1])))
    # what each corner adds to the hash; 32 bits suffice, since overflow keeps the bits that count
    x, y, z = ([n * factor, (n + 1) * factor]
               for n, factor in zip((c.long().int() for c in cell), LATTICE))
    seed = seed.int() * SEED_FACTOR

    def edge(dy, dz):
        rest = y[dy] + (z[dz] + seed)
        low, high = (scramble(x[dx] + rest).to(points.dtype) for dx in (0, 1))
        return torch.lerp(low, high, blend[0])

    def layer(dz):
        return torch.lerp(edge(0, dz), edge(1, dz), blend[1])

    if not blend[2].any():  # all points lie on one layer of the lattice, as on flat ground
        return layer(0)
    return torch.lerp(layer(0), layer(1), blend[2])


LATTICE, SEED_FACTOR = (374761393, 668265263, 2147483647), 144269504


def lattice(x: Tensor, y: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    """A hash of integers x, y, z and seed as a float in [0, 1)."""
    return scramble((x * LATTICE[0] + y * LATTICE[1] + z * LATTICE[2] + seed * SEED_FACTOR).int())


def scramble(h: Tensor) -> Tensor:
    """Integers (int32, overwritten) to floats in [0, 1)."""
    h = h.bitwise_and_(0x7FFFFFFF)
    h = h.bitwise_xor_(h >> 13).mul_(1274126177).bitwise_and_(0x7FFFFFFF)
    return h.bitwise_xor_(h >> 16).bitwise_and_(0xFFFF).float() / 65536
