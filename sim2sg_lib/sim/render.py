"""`Env.sample` and `Env.render` of a 3-D world: a random scene, and scenes with images and exact labels."""
import numpy as np
import torch

from sim2sg_lib.env import Env, Rendered
from sim2sg_lib.scene import Scene
from sim2sg_lib.sim import pytorch3d, rasterizer
from sim2sg_lib.sim.annotate import annotate_objects
from sim2sg_lib.sim.shading import rasterize_scenes, shade

RASTERIZERS = {"own": rasterizer.rasterize, "pytorch3d": pytorch3d.rasterize}


def sample_scene(env: Env, domain: str, randomize: str, rng: np.random.Generator) -> Scene:
    """A random scene of a domain: content, then appearance."""
    objects, camera = env.world.sample_layout(env, domain, rng)
    return env.world.sample_appearance(objects, camera, domain, randomize, rng)


def render_scenes(env: Env, scenes: list[Scene], names: list[str], size: tuple[int, int], device: torch.device,
                  renderer: str = "own") -> Rendered:
    """Images of the scenes and their exact labels.

    names: of the images, for their graphs. size: width and height in pixels. renderer: a name of RASTERIZERS.
    """
    seen = rasterize_scenes(scenes, env.world.assets, *size, device, RASTERIZERS[renderer])
    images = (shade(*seen, scenes) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return Rendered(images, *annotate_objects(*seen, scenes, env, names))
