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
    """The numbers of an environment's loop at one size: defaults of scripts and of `make loop`."""

    image_size: tuple[int, int]  # (width, height) of synthetic images and of the network's input
    source_images: int  # random images of the source domain (SDR)
    target_images: int  # images of the stand-in for a real target: train, val and test together
    lifted_images: int  # images of one iteration
    start_steps: int  # optimizer steps of the first network
    steps: int  # optimizer steps of every row that is fine-tuned from it
    iterations: int  # rounds of inferring, lifting, rendering and training
    warmup: float  # fraction of a row's steps before its adversarial losses start
    batch: int = 4  # images of each domain per step


@dataclass(frozen=True)
class Rendered:
    """B rendered and labeled scenes."""

    images: np.ndarray  # (B, H, W, 3) uint8
    graphs: list[SceneGraph]  # exact labels, one graph per image
    object_rows: list[list[int]]  # per graph, indices of its objects in the scene


@dataclass(frozen=True)
class World:
    """The 3-D part of an environment: what lifting and rendering need.

    pitch_spread_rad:  standard deviation of the camera's pitch relative to the ground. If it is 0,
                       depth comes from a box's bottom edge alone; else from its height, too.
    sample_layout:     (Env, domain, generator) -> objects without appearance, and the camera: a
                       scene's content. The Env's source assets may be those of --assets.
    snap_to_context:   (lifted objects, their boxes (N, 4) px, camera, generator) -> objects, by
                       other knowledge such as lanes. May replace an object by several. Or None.
    sample_appearance: (objects, camera, domain, randomize, generator) -> Scene. randomize: "paper",
                       or "strong": the source varies everything that a scene graph does not hold.
    """

    rules: RelationRules
    camera: Camera  # the nominal view, used where a data set has no cameras.jsonl
    assets: dict[str, Mesh]  # asset name -> unit mesh
    asset_sizes_m: dict[str, tuple[tuple[float, float, float], ...]]  # name -> sizes it comes in
    category_assets: tuple[tuple[str, ...], ...]  # per category, the names of the source's assets
    yaws_rad: tuple[tuple[float, ...] | None, ...]  # per category, of lifted objects; None for any
    pitch_spread_rad: float
    size_spreads: tuple[float, ...]  # per category, the coefficient of variation of its height
    min_visible_fraction: float  # of the image; objects that cover less are not labeled
    sample_layout: Callable[["Env", str, np.random.Generator], tuple[list[SceneObject], Camera]]
    snap_to_context: Callable[[list[SceneObject], np.ndarray, Camera, np.random.Generator],
                              list[SceneObject]] | None
    sample_appearance: Callable[[list[SceneObject], Camera, str, str, np.random.Generator], Scene]
    paper_camera: Camera | None = None  # `--camera paper`, where the paper assumes another view


@dataclass(frozen=True)
class Env:
    """One environment.

    sample: (Env, domain, randomize, generator) -> scene: any object that `render` takes and whose
            `to_json` is a line of scenes.jsonl. For a 3-D world, `sim.render.sample_scene`.
    render: (Env, scenes, image names, (width, height), device, renderer) -> Rendered. For a 3-D
            world, `sim.render.render_scenes`.

    Raises: InputError for fields that contradict each other.
    """

    name: str  # its `--env`, and the name of its file
    vocabulary: Vocabulary
    presets: dict[str, Preset]  # "quick" (minutes on two cores) and "paper" (for a GPU)
    domains: dict[str, tuple[str, str]]  # `--domain` -> (whose content, whose appearance)
    threshold: float  # default confidence below which predictions are not lifted (tau)
    adaptive: bool  # whether it is relative to the best scores, see `net.predict.thresholds`
    sample: Callable[["Env", str, str, np.random.Generator], Scene]
    render: Callable[["Env", list, list[str], tuple[int, int], torch.device, str], Rendered]
    world: World | None = None  # None for a 2-D environment, whose graphs cannot be lifted

    def __post_init__(self) -> None:
        if self.world is None or self.world.pitch_spread_rad <= 0:
            return
        for category, spread in zip(self.vocabulary.categories, self.world.size_spreads):
            if not spread > 0:  # lifting divides by it
                raise InputError(f"envs/{self.name}.py: ENV: size_spreads: {spread} of {category}, "
                                 "expected more than 0 where pitch_spread_rad is")
