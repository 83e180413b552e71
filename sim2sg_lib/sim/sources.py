"""Scene sources: where the scenes that `synthesize.py` renders come from.

A source has a `method` (its name in dataset.json), the `graphs` that it lifts, `splits(num)`
(subfolder -> images) and `scenes(indices)`. Scene i depends on the source's fields and on i alone.
"""
import zlib
from collections.abc import Sequence
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
    """Label alignment (section 4.1): 3-D scenes of given graphs, in a random look of the source.

    With `fitted` scenes, image i shows the graph i modulo their number: first in its own fitted
    look, with jitter, later in the light and palette of another image. Of a mixed look, half of the
    images stay in the random look.
    """

    env: Env
    graphs: list[SceneGraph]  # scene i shows graph i modulo their number
    cameras: list[Camera]  # one per graph, of any pixel size
    randomize: str  # "paper" or "strong", see `World.sample_appearance`
    pose_steps: int  # gradient steps that fit the lifted objects to their boxes
    seed: int
    device: torch.device  # of the fit
    fitted: Sequence[Scene | None] = ()  # of the first graphs; None where the look could not be fitted
    mixed: bool = False
    jitter: float = 0.1  # of the fitted looks, see variety.jittered
    method: ClassVar[str] = "label"

    def splits(self, num: int) -> dict[str, range]:
        return {".": range(num)}

    def scenes(self, indices: Sequence[int]) -> list[Scene]:
        own = [i for i in indices if self.takes_fit(i) and i < len(self.fitted)]
        made = {i: self.fitted[i] for i in own}
        made |= self.random_looks([i for i in indices if i not in made])
        rngs = generators(self.seed, self.env, "look", indices)
        return [self.dressed(i, made[i], rng).moved(self.offset_m(i)) for i, rng in zip(indices, rngs)]

    def takes_fit(self, i: int) -> bool:
        """Whether image i is one in a fitted look."""
        turn, number = divmod(i, len(self.graphs))
        chosen = not self.mixed or (turn + number) % 2 == 0
        return chosen and number < len(self.fitted) and self.fitted[number] is not None

    def dressed(self, i: int, scene: Scene, rng: np.random.Generator) -> Scene:
        """A scene in the look of image i, if that is not a random one."""
        if not self.takes_fit(i):
            return scene
        from sim2sg_lib.sim.variety import jittered, recolored  # not for the paper's Algorithm 1
        if i >= len(self.graphs):
            donors = [one for one in self.fitted if one is not None]
            scene = recolored(scene, [donors[row] for row in rng.permutation(len(donors))], rng)
        return jittered(scene, rng, self.jitter)

    def offset_m(self, i: int) -> np.ndarray:
        """(2,) the origin of the world of the nominal camera, in which image i is lifted."""
        return self.cameras[i % len(self.graphs)].offset_from(self.env.world.camera)

    def random_looks(self, indices: Sequence[int]) -> dict[int, Scene]:
        """Index -> scene in a random look, in the world of the nominal camera."""
        world, rngs = self.env.world, generators(self.seed, self.env, self.method, indices)
        chosen = [i % len(self.graphs) for i in indices]
        # the origin of the world is arbitrary: lift in the world of the nominal camera
        cameras = [self.cameras[i].moved(-self.offset_m(i)) for i in chosen]
        lifted = [lift(self.graphs[i], camera, self.env, rng)
                  for i, camera, rng in zip(chosen, cameras, rngs)]
        objects, graphs = [row for row, _ in lifted], [graph for _, graph in lifted]
        if self.pose_steps:
            objects = refine(objects, graphs, cameras, world.assets, self.pose_steps, self.device)
        if world.snap_to_context:
            objects = [world.snap_to_context(row, graph.boxes_px, camera, rng)
                       for row, graph, camera, rng in zip(objects, graphs, cameras, rngs)]
        return {i: world.sample_appearance(row, camera, "source", self.randomize, rng)
                for i, row, camera, rng in zip(indices, objects, cameras, rngs)}


def generators(seed: int, env: Env, method: str, indices: Sequence[int]) -> list[np.random.Generator]:
    """One random generator per image."""
    key = zlib.crc32(f"{env.name} {method}".encode())
    return [np.random.default_rng([seed, key, i]) for i in indices]
