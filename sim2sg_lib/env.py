"""What an environment declares: each file of envs/ holds one `Env`.

Nothing else has to change for a new file, as long as a 3-D world's predicates are among left,
right, front, behind (in the camera's ground frame) and on (scene.py; lifting moves objects by
them). A 2-D environment labels its own relations, so it may have any predicates.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import SceneGraph, Vocabulary
from sim2sg_lib.scene import Mesh, RelationRules, Scene, SceneObject

# the paper's domains: name -> (whose content, whose appearance); the mixed ones are its ablations
DOMAINS = {
    "source": ("source", "source"), "target": ("target", "target"),
    "target-content": ("target", "source"), "target-appearance": ("source", "target")}


@dataclass(frozen=True)
class Preset:
    """The numbers of an environment's loop at one size: defaults of the scripts and of `make loop`.

    image_size:    (width, height) in pixels of synthetic images and of the network's input.
    source_images: random images of the source domain (SDR).
    target_images: images of the stand-in for a real target: train, val and test together.
    lifted_images: images of one iteration.
    start_steps:   optimizer steps of the first network.
    steps:         optimizer steps of every row that is fine-tuned from it.
    iterations:    rounds of inferring, lifting, rendering and training.
    warmup:        fraction of a row's steps before its adversarial losses start.
    """

    image_size: tuple[int, int]
    source_images: int
    target_images: int
    lifted_images: int
    start_steps: int
    steps: int
    iterations: int
    warmup: float


@dataclass(frozen=True)
class Rendered:
    """B rendered and labeled scenes.

    images: (B, H, W, 3) uint8.    graphs: exact labels, one graph per image.
    object_rows: for each graph, the index of the scene object behind each of its objects.
    """

    images: np.ndarray
    graphs: list[SceneGraph]
    object_rows: list[list[int]]


@dataclass(frozen=True)
class World:
    """The 3-D part of an environment: what lifting and rendering need.

    rules:                when the predicates hold.
    camera:               the nominal view, used where a data set has no cameras.jsonl.
    assets:               asset name -> unit mesh.
    asset_sizes_m:        asset name -> the sizes (x, y, z extents) that it comes in.
    category_assets:      per category, the names of the source's assets.
    yaws_rad:             per category, the yaws that lifted objects may have; None for any.
    pitch_spread_rad:     standard deviation of the camera's pitch relative to the ground. If it is 0,
                          depth comes from a box's bottom edge alone; else from its height, too.
    size_spreads:         per category, the coefficient of variation of its height; positive if
                          pitch_spread_rad is.
    min_visible_fraction: objects that cover a smaller fraction of the image are not labeled.
    sample_layout:        (Env, domain, generator) -> objects without appearance, and the camera: a
                          scene's content. The Env's source assets may be those of --assets.
    snap_to_context:      (lifted objects, their boxes (N, 4) px, camera, generator) -> objects, by other
                          knowledge such as lanes. May replace an object by several. Or None.
    sample_appearance:    (objects, camera, domain, randomize, generator) -> Scene. randomize: "paper", or
                          "strong": the source varies everything that a scene graph does not hold.
    """

    rules: RelationRules
    camera: Camera
    assets: dict[str, Mesh]
    asset_sizes_m: dict[str, tuple[tuple[float, float, float], ...]]
    category_assets: tuple[tuple[str, ...], ...]
    yaws_rad: tuple[tuple[float, ...] | None, ...]
    pitch_spread_rad: float
    size_spreads: tuple[float, ...]
    min_visible_fraction: float
    sample_layout: Callable[["Env", str, np.random.Generator], tuple[list[SceneObject], Camera]]
    snap_to_context: Callable[[list[SceneObject], np.ndarray, Camera, np.random.Generator],
                              list[SceneObject]] | None
    sample_appearance: Callable[[list[SceneObject], Camera, str, str, np.random.Generator], Scene]


@dataclass(frozen=True)
class Env:
    """One environment.

    name:       its `--env`, and the name of its file.
    vocabulary: its categories and predicates.
    presets:    "quick" (minutes on two cores) and "paper" (the paper's sizes, for a GPU).
    domains:    `--domain` -> (whose content, whose appearance): "source" and any others.
    threshold:  default confidence below which predictions are not lifted (tau).
    adaptive:   whether the threshold is relative to the best scores, see `net.predict.thresholds`.
    sample:     (Env, domain, randomize, generator) -> scene: any object that `render` takes and whose
                `to_json` is a line of scenes.jsonl. For a 3-D world, `sim.render.sample_scene`.
    render:     (Env, scenes, image names, (width, height), device, renderer) -> Rendered.
                For a 3-D world, `sim.render.render_scenes`.
    world:      the 3-D part; None for a 2-D environment, whose graphs cannot be lifted.

    Raises: InputError for fields that contradict each other.
    """

    name: str
    vocabulary: Vocabulary
    presets: dict[str, Preset]
    domains: dict[str, tuple[str, str]]
    threshold: float
    adaptive: bool
    sample: Callable[["Env", str, str, np.random.Generator], Scene]
    render: Callable[["Env", list, list[str], tuple[int, int], torch.device, str], Rendered]
    world: World | None = None

    def __post_init__(self) -> None:
        if self.world is None or self.world.pitch_spread_rad <= 0:
            return
        for category, spread in zip(self.vocabulary.categories, self.world.size_spreads):
            if not spread > 0:  # lifting divides by it
                raise InputError(f"envs/{self.name}.py: ENV: size_spreads: {spread} of {category}, "
                                 "expected more than 0 where pitch_spread_rad is")
