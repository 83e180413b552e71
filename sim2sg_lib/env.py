"""What an environment must say about itself. Each file in envs/ declares one `Env`; the library never imports them."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sim2sg_lib.camera import Camera
from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import SceneGraph, Vocabulary
from sim2sg_lib.scene import Mesh, RelationRules, Scene, SceneObject

DOMAINS = {  # the paper's: name -> (whose content, whose appearance); the two mixed ones are its ablations
    "source": ("source", "source"), "target": ("target", "target"),
    "target-content": ("target", "source"), "target-appearance": ("source", "target")}


@dataclass(frozen=True)
class Preset:
    """The numbers of one environment's loop at one size; defaults of the scripts and of `make loop`.

    image_size:      (width, height) in pixels of synthetic images and of the network's input.
    source_images:   random images of the source domain (SDR).
    target_images:   images of the stand-in for a real target: train, val and test together.
    lifted_images:   images of one iteration.
    start_steps:     optimizer steps of the first network.
    steps:           optimizer steps of every row that is fine-tuned from it.
    iterations:      rounds of predict, lift, render, train.
    warmup:          fraction of a row's steps before its adversarial losses start.
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

    images: (B, H, W, 3) uint8.    graphs: the exact labels of each.
    object_rows: for each graph, which of its scene's objects each of its rows labels.
    """

    images: np.ndarray
    graphs: list[SceneGraph]
    object_rows: list[list[int]]


@dataclass(frozen=True)
class World:
    """The 3-D part of an environment: what lifting and rendering must know.

    rules:                when the predicates hold.
    camera:               the nominal view, used where a data set brings no cameras.jsonl.
    assets:               asset name -> unit mesh.
    asset_sizes_m:        asset name -> the sizes (x, y, z extents) that it comes in.
    category_assets:      per category, the names of the source's assets.
    yaws_rad:             per category, the yaws that lifted objects may have; None for any.
    pitch_spread_rad:     standard deviation of the camera's pitch relative to the ground; 0 where the ground is flat:
                          then depth comes from a box's bottom edge alone, else from its height, too.
    size_spreads:         per category, standard deviation of its height over the mean; above 0 where
                          pitch_spread_rad is.
    min_visible_fraction: objects that show in less than this fraction of the image are not labeled.
    sample_layout:        (Env, domain, generator) -> objects without appearance, and the camera: a scene's content.
                          Of the Env it takes the source's assets, which --assets may have replaced.
    snap_to_context:      (lifted objects, their boxes (N, 4) px, camera, generator) -> objects: what else is known of
                          where things stand (lanes, for instance), and one box's several objects; None for nothing.
    sample_appearance:    (objects, camera, domain, randomize, generator) -> Scene; randomize is "paper" or "strong".
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
    snap_to_context: Callable[[list[SceneObject], np.ndarray, Camera, np.random.Generator], list[SceneObject]] | None
    sample_appearance: Callable[[list[SceneObject], Camera, str, str, np.random.Generator], Scene]


@dataclass(frozen=True)
class Env:
    """One environment.

    name:       as in `--env`, that of its file.
    vocabulary: its categories and predicates.
    presets:    "quick" (minutes on two cores) and "paper" (the paper's sizes, for a GPU) -> the loop's numbers.
    domains:    names for `--domain` -> (whose content, whose appearance): "source" and what else there is.
    threshold:  default confidence below which predictions are not lifted (tau).
    adaptive:   whether that is a fraction of what the network is sure of, see `predict.thresholds`.
    sample:     (Env, domain, randomize, generator) -> a scene: anything that `render` takes and whose `to_json` gives
                one line of scenes.jsonl. `sim.render.sample_scene` for a 3-D world.
    render:     (Env, scenes, image names, (width, height), device, renderer) -> Rendered.
                `sim.render.render_scenes` for a 3-D world.
    world:      the 3-D part; None for a 2-D environment, whose graphs cannot be lifted.

    Raises: InputError for fields that do not go together.
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
        spreads = zip(self.vocabulary.categories, self.world.size_spreads) if self.world else ()
        for category, spread in spreads:  # the depth from a height is weighed by the spread's inverse
            if self.world.pitch_spread_rad > 0 and not spread > 0:
                raise InputError(f"envs/{self.name}.py: ENV: size_spreads: {spread} of {category}, expected more than 0 "
                                 "where pitch_spread_rad is")
