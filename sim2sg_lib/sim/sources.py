"""Scene sources: where the scenes that `synthesize.py` renders come from.

A source has a `method` (its name in dataset.json), the `graphs` that it lifts, `splits(num)`
(subfolder -> images) and `scenes(indices)`. Scene i depends on the source's fields and on i alone.
"""
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sim2sg_lib.camera import Camera
from sim2sg_lib.env import Env
from sim2sg_lib.graph import SceneGraph
from sim2sg_lib.scene import Scene
from sim2sg_lib.sim.fit import refine
from sim2sg_lib.sim.lift import lift


@dataclass(frozen=True)
class RandomScenes:
    """Random scenes of one domain: SDR for the source, else a stand-in for real images."""

    env: Env
    domain: str  # a key of env.domains
    randomize: str  # "paper" or "strong", see `World.sample_appearance`
    seed: int
    unsplit: bool = False  # whether another domain's images are a source, too
    graphs: ClassVar[tuple] = ()

    @property
    def method(self) -> str:
        return "sdr" if self.domain == "source" else self.domain

    def splits(self, num: int) -> dict[str, range]:
        """Of a target: a quarter to test, an eighth to validate, the rest to adapt to."""
        if self.domain == "source" or self.unsplit:
            return {".": range(num)}
        test, val = -(-num // 4), -(-num // 8)
        first = num - test
        train = first - val
        return {"train": range(train), "val": range(train, first), "test": range(first, num)}

    def scenes(self, indices: range) -> list:
        return [self.env.sample(self.env, self.domain, self.randomize, rng)
                for rng in generators(self.seed, self.env, self.method, indices)]


@dataclass(frozen=True)
class LiftedScenes:
    """Label alignment (section 4.1): 3-D scenes of given graphs, in a random look of the source."""

    env: Env
    graphs: list[SceneGraph]  # scene i shows graph i modulo their number
    cameras: list[Camera]  # one per graph, of any pixel size
    randomize: str  # "paper" or "strong", see `World.sample_appearance`
    fit_steps: int  # gradient steps that fit the lifted objects to their boxes
    seed: int
    device: torch.device  # of the fit
    method: ClassVar[str] = "label"

    def splits(self, num: int) -> dict[str, range]:
        return {".": range(num)}

    def scenes(self, indices: range) -> list[Scene]:
        world, rngs = self.env.world, generators(self.seed, self.env, self.method, indices)
        chosen = [i % len(self.graphs) for i in indices]
        # the origin of the world is arbitrary: lift in the world of the nominal camera
        offsets_m = [self.cameras[i].offset_from(world.camera) for i in chosen]
        cameras = [self.cameras[i].moved(-offset_m) for i, offset_m in zip(chosen, offsets_m)]
        lifted = [lift(self.graphs[i], camera, self.env, rng)
                  for i, camera, rng in zip(chosen, cameras, rngs)]
        objects, graphs = [row for row, _ in lifted], [graph for _, graph in lifted]
        if self.fit_steps:
            objects = refine(objects, graphs, cameras, world.assets, self.fit_steps, self.device)
        if world.snap_to_context:
            objects = [world.snap_to_context(row, graph.boxes_px, camera, rng)
                       for row, graph, camera, rng in zip(objects, graphs, cameras, rngs)]
        return [world.sample_appearance(row, camera, "source", self.randomize, rng).moved(offset_m)
                for row, camera, rng, offset_m in zip(objects, cameras, rngs, offsets_m)]


def generators(seed: int, env: Env, method: str, indices: range) -> list[np.random.Generator]:
    """One random generator per image."""
    key = zlib.crc32(f"{env.name} {method}".encode())
    return [np.random.default_rng([seed, key, i]) for i in indices]
