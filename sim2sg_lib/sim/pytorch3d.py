"""PyTorch3D's MeshRasterizer (Ravi et al. 2020), if installed, as rasterizer.rasterize."""
import torch

from sim2sg_lib.camera import Cameras
from sim2sg_lib.cli import InputError
from sim2sg_lib.sim.meshes import Meshes
from sim2sg_lib.sim.rasterizer import NEAR_M, Fragments

INSTALL = "https://github.com/facebookresearch/pytorch3d/blob/main/INSTALL.md"


def require() -> None:
    """Raises: InputError if PyTorch3D cannot be imported."""
    try:
        import pytorch3d.renderer  # noqa: F401
    except ImportError as error:
        raise InputError(f"--renderer pytorch3d: cannot import it ({error}); build it from source as "
                         f"{INSTALL} says, or leave the option out") from None


def rasterize(meshes: Meshes, cameras: Cameras, blur_radius: float = 0.0, faces_per_pixel: int = 1,
              cull_backfaces: bool = False) -> Fragments:
    """As rasterizer.rasterize. Raises: InputError if PyTorch3D cannot be imported."""
    require()
    from pytorch3d.renderer import MeshRasterizer, RasterizationSettings
    from pytorch3d.structures import Meshes as Structures
    from pytorch3d.utils import cameras_from_opencv_projection
    size = torch.tensor([[cameras.height, cameras.width]] * meshes.scenes, device=cameras.K.device)
    views = cameras_from_opencv_projection(cameras.R, cameras.t, cameras.K, size)
    settings = RasterizationSettings(
        image_size=(cameras.height, cameras.width), blur_radius=blur_radius,
        faces_per_pixel=faces_per_pixel, cull_backfaces=cull_backfaces, z_clip_value=NEAR_M, bin_size=None)
    verts, faces, first = [], [], 0
    face_scene = meshes.object_scene[meshes.face_object]
    for scene in range(meshes.scenes):  # as here, faces are packed scene after scene
        verts.append(meshes.verts_world[meshes.vert_scene == scene])
        faces.append(meshes.faces[face_scene == scene] - first)
        first += len(verts[-1])
    found = MeshRasterizer(views, settings)(Structures(verts, faces))
    return Fragments(found.pix_to_face, found.zbuf, found.bary_coords, found.dists)
