"""`Env.sample` and `Env.render` of a 3-D world."""
import numpy as np
import torch

from sim2sg_lib.camera import stack_cameras
from sim2sg_lib.env import Env, Rendered
from sim2sg_lib.scene import Scene
from sim2sg_lib.sim.annotate import annotate
from sim2sg_lib.sim.large_images import is_large, shade_large
from sim2sg_lib.sim.meshes import build
from sim2sg_lib.sim.rasterizer import rasterize, scale_cameras
from sim2sg_lib.sim.shading import SUPERSAMPLE, shade

def sample_scene(env: Env, domain: str, randomize: str, rng: np.random.Generator) -> Scene:
    """A random scene of a domain: content, then appearance."""
    objects, camera = env.world.sample_layout(env, domain, rng)
    return env.world.sample_appearance(objects, camera, domain, randomize, rng)


def render_scenes(env: Env, scenes: list[Scene], names: list[str], size: tuple[int, int],
                  device: torch.device, renderer: str = "own") -> Rendered:
    """Images of the scenes, `size` (width, height) in pixels, and their exact labels.

    Raises: InputError if PyTorch3D is asked for and cannot be imported.
    """
    scenes = [scene.moved((-scene.origin_world[0], -scene.origin_world[1])) for scene in scenes]
    meshes = build(scenes, env.world.assets, device)
    cameras = stack_cameras([scene.camera for scene in scenes], *size, device)
    if renderer == "pytorch3d":  # optional
        from sim2sg_lib.sim import pytorch3d
    find_fragments = rasterize if renderer == "own" else pytorch3d.rasterize
    fragments = find_fragments(meshes, scale_cameras(cameras, SUPERSAMPLE), cull_backfaces=True)
    shade_images = shade_large if is_large(cameras) else shade
    images = shade_images(fragments, meshes, cameras, scenes)
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return Rendered(pixels, *annotate(fragments, meshes, cameras, scenes, env, names))
