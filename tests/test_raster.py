"""The rasterizer against PyTorch3D, a slow reference, finite differences; degenerate scenes."""
import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clevr import ENV
from sim2sg_lib.camera import Cameras, stack_cameras
from sim2sg_lib.sim.meshes import Meshes, build, pack_textures
from sim2sg_lib.sim import pytorch3d
from sim2sg_lib.sim.rasterizer import (
    NEAR_M, Pairs, barycentrics, covered, rasterize, scale_cameras, screen_faces)
from sim2sg_lib.sim.shading import SUPERSAMPLE, shade
from sim2sg_lib.sim.soft import OPAQUE, silhouette, soft_blend
from sim2sg_lib.scene import Material, Scene, Sky

FIELDS = ("pix_to_face", "zbuf", "bary_coords", "dists")


def pack(verts, faces, scene=None, scenes=1) -> Meshes:
    """Triangles: verts (V, 3), faces (F, 3), scene (V,) of each vertex; one object per scene."""
    scene = torch.zeros(len(verts), dtype=torch.int64) if scene is None else scene
    face_object = scene[faces[:, 0]] if len(faces) else torch.zeros(0, dtype=torch.int64)
    blank = torch.zeros(scenes)
    textures = pack_textures([Material()] * scenes, "cpu", verts.dtype)
    return Meshes(verts, verts, verts, verts, verts, scene, faces, face_object, face_object,
                  torch.arange(scenes), scenes, torch.zeros(scenes, 3), blank, blank, textures)


def view(width, height, focal_px, dtype=torch.float64, scenes=1) -> Cameras:
    """Cameras at the world's origin that look along +z, principal point off the center."""
    K = torch.tensor([[focal_px, 0, 0.45 * width], [0, focal_px, 0.55 * height], [0, 0, 1]],
                     dtype=dtype)
    return Cameras(
        K.expand(scenes, 3, 3),
        torch.eye(3, dtype=dtype).expand(scenes, 3, 3),
        torch.zeros(scenes, 3, dtype=dtype),
        width,
        height,
    )


# --- PyTorch3D ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def reference():
    path = Path(__file__).parent / "data" / "pytorch3d_raster.npz"
    return np.load(path)


@pytest.mark.parametrize(
    "name", ["triangle_hard", "two_soft", "two_soft_wide", "scene_hard", "scene_soft"]
)
def test_fragments_are_pytorch3d_s(reference, name):
    """Compares with the output of PyTorch3D 0.7.9's CPU rasterizer (tests/data/README.md)."""
    def get(key):
        return torch.from_numpy(np.asarray(reference[f"{name}/{key}"]))

    height, width = get("size").tolist()
    verts = get("verts").requires_grad_()
    cameras = Cameras(get("K")[None], get("R")[None], get("t")[None], width, height)
    meshes = pack(verts, get("faces"))
    found = rasterize(meshes, cameras, float(get("blur_radius")), int(get("faces_per_pixel")))
    same = found.pix_to_face[0] == get("pix_to_face")
    assert same[..., 0].float().mean() >= 0.999 and same.float().mean() >= 0.999
    assert (found.zbuf[0] - get("zbuf"))[same].abs().max() < 1e-4
    assert (found.bary_coords[0] - get("bary"))[same].abs().max() < 1e-4
    assert (found.dists[0] - get("dists"))[same].abs().max() < 1e-5
    if f"{name}/silhouette" not in reference:
        return
    coverage = torch.sigmoid(-found.dists / float(get("sigma"))) * (found.pix_to_face >= 0)
    image = 1 - (1 - coverage).prod(-1)
    assert (image[0] - get("silhouette")).abs().max() < 1e-3
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    loss = ((image - 0.3 * x - 0.5 * y) ** 2).sum()
    assert loss.item() == pytest.approx(float(get("loss")), rel=1e-4)
    gradient, = torch.autograd.grad(loss, verts)
    assert torch.cosine_similarity(gradient.flatten(), get("grad_verts").flatten(), 0) > 0.999


# --- a slow reference -----------------------------------------------------------------------------

def slow_pixel(corners, K, u, v):
    """Inside or not, depth, barycentrics and squared distance (px) of one pixel and one face.

    The face (3, 3) is in the camera frame. Depth and barycentrics come from the intersection of
    the ray with the plane of the face in 3-D, the distance from the edges, clipped at the near
    plane and projected.
    """
    ray = np.array([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], 1.0])
    system = np.column_stack([corners[0] - corners[2], corners[1] - corners[2], -ray])
    a, b, depth = np.linalg.solve(system, -corners[2])
    bary = np.array([a, b, 1 - a - b])
    inside = bool((bary >= 0).all() and depth > NEAR_M)
    polygon = []
    for i in range(3):
        p, q = corners[i], corners[(i + 1) % 3]
        if p[2] > NEAR_M:
            polygon.append(p)
        if (p[2] > NEAR_M) != (q[2] > NEAR_M):
            polygon.append(p + (q - p) * (NEAR_M - p[2]) / (q[2] - p[2]))
    points = [np.array([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]])
              for x, y, z in polygon]
    squared = math.inf
    for p, q in zip(points, points[1:] + points[:1]):
        t = np.clip((np.array([u, v]) - p) @ (q - p) / max((q - p) @ (q - p), 1e-12), 0, 1)
        squared = min(squared, ((np.array([u, v]) - p - t * (q - p)) ** 2).sum())
    return inside, depth, bary, squared


def random_triangles(count, seed, behind):
    """Triangles in front of the camera; with `behind`, half of them extend behind it."""
    rng = np.random.default_rng(seed)
    verts = rng.uniform([-1.5, -1.5, 1.0], [1.5, 1.5, 4.0], (3 * count, 3))
    if behind:
        verts[::6, 2] -= 4.0
    return torch.from_numpy(verts), torch.arange(3 * count).view(-1, 3)


@pytest.mark.parametrize("behind", [False, True])
def test_nearest_faces_agree_with_a_per_pixel_twin(behind):
    verts, faces = random_triangles(12, 4, behind)
    cameras = view(8, 8, 6.0)
    found = rasterize(pack(verts, faces), cameras, faces_per_pixel=4)
    K = cameras.K[0].numpy()
    for y, x in np.ndindex(8, 8):
        hits = []
        for f in range(12):
            inside, depth, bary, squared = slow_pixel(verts[faces[f]].numpy(), K, x + 0.5, y + 0.5)
            if inside:
                hits.append((depth, f, bary, -squared / 16))  # NDC: 8 pixels are 2 long
        hits = sorted(hits, key=lambda hit: hit[0])[:4]
        assert (found.pix_to_face[0, y, x].tolist()
                == [hit[1] for hit in hits] + [-1] * (4 - len(hits)))
        for k, (depth, _, bary, squared) in enumerate(hits):
            assert found.zbuf[0, y, x, k].item() == pytest.approx(depth, rel=1e-6)
            assert found.bary_coords[0, y, x, k].numpy() == pytest.approx(bary, abs=1e-6)
            assert found.dists[0, y, x, k].item() == pytest.approx(squared, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("behind", [False, True])
def test_the_silhouette_agrees_with_a_per_pixel_twin_over_all_faces(behind):
    verts, faces = random_triangles(12, 5, behind)
    cameras, sigma = view(8, 8, 6.0), 1e-2
    found = silhouette(pack(verts, faces), cameras, sigma)
    K = cameras.K[0].numpy()
    for y, x in np.ndindex(8, 8):
        clear = cut = 1.0
        for f in range(12):
            inside, _, _, squared = slow_pixel(verts[faces[f]].numpy(), K, x + 0.5, y + 0.5)
            covered = 1 / (1 + math.exp(min((-squared if inside else squared) / 16 / sigma, 700)))
            clear *= 1 - covered
            cut *= 1 - (covered if covered > OPAQUE else 0)
        assert found[0, y, x].item() == pytest.approx(1 - cut, abs=1e-6)
        # the cut-off of 12 faces, at most
        assert found[0, y, x].item() == pytest.approx(1 - clear, abs=12 * OPAQUE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_rows_are_those_whose_barycentrics_are_not_negative(dtype):
    """Exactly, also for large and thin triangles and edges through pixel centers or along rows."""
    rng = np.random.default_rng(6)
    corners = np.concatenate(
        [
            rng.integers(0, 24, (60, 3, 2)) + 0.5,
            rng.uniform(-20, 44, (60, 3, 2)),
            rng.uniform(0, 24, (60, 1, 2))
            + rng.normal(0, [[[0.01, 9.0]], [[9.0, 0.01]]] * 30, (60, 3, 2)),
        ]
    )
    depth_m = rng.uniform(1, 3, (180, 3, 1))
    verts = torch.from_numpy(
        np.concatenate([corners * depth_m, depth_m], 2).reshape(-1, 3)).to(dtype)
    eye = torch.eye(3, dtype=dtype)[None]
    faces = screen_faces(
        pack(verts, torch.arange(540).view(-1, 3)),
        Cameras(eye, eye, torch.zeros(1, 3, dtype=dtype), 24, 24),
        0.0,
        False,
    )
    pairs = covered(faces, (0, 24), 24, 0.0)
    found = set(zip(pairs.face.tolist(), pairs.pixel.tolist()))
    expected = set()
    for i in range(len(faces.face)):
        (x0, y0), (width, height) = faces.first[i].tolist(), faces.span[i].tolist()
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        every = Pairs(
            torch.full((x.numel(),), i), torch.stack([x.flatten(), y.flatten()], 1).to(dtype),
            None, None
        )
        inside = (torch.stack(barycentrics(faces, every)) >= 0).all(0).view(height, width)
        expected |= {(i, (y0 + row) * 24 + x0 + column)
                     for row, column in inside.nonzero().tolist()}
    assert found == expected and len(found) == len(pairs.face) > 5000


# --- gradients ------------------------------------------------------------------------------------

def scene_inputs():
    verts, faces = random_triangles(4, 7, behind=False)
    cameras = view(8, 8, 6.0)
    inputs = [
        verts.requires_grad_(),
        cameras.K.clone().requires_grad_(),
        cameras.R.clone().requires_grad_(),
        cameras.t.clone().requires_grad_(),
    ]
    return inputs, faces


def test_gradients_of_fragments_agree_with_finite_differences():
    inputs, faces = scene_inputs()

    def fragments(verts, K, R, t):
        found = rasterize(pack(verts, faces), Cameras(K, R, t, 8, 8), 0.05, 3)
        return found.zbuf, found.bary_coords, found.dists

    assert torch.autograd.gradcheck(fragments, inputs, eps=1e-7, atol=1e-4)


def test_gradients_of_soft_images_agree_with_finite_differences():
    inputs, faces = scene_inputs()
    colors = torch.rand(
        1, 8, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()

    def images(verts, K, R, t, colors):
        meshes, cameras = pack(verts, faces), Cameras(K, R, t, 8, 8)
        found = rasterize(meshes, cameras, 0.05, 3)
        return (silhouette(meshes, cameras, 1e-2),
                soft_blend(colors, found, torch.zeros(3), 1e-2, 1e-2))

    assert torch.autograd.gradcheck(images, [*inputs, colors], eps=1e-7, atol=1e-4)


# --- budget, limits, degenerate scenes ------------------------------------------------------------

@pytest.mark.parametrize("count, blur", [(1, 0.0), (3, 0.01)])
def test_every_memory_budget_gives_the_same_bits(count, blur):
    verts, faces = random_triangles(40, 8, behind=True)
    scene = torch.arange(40).repeat_interleave(3) % 2
    results = []
    for budget in (1e-4, 0.01, 512):
        moving = verts.float().clone().requires_grad_()
        meshes, cameras = pack(moving, faces, scene, 2), view(40, 30, 30.0, torch.float32, 2)
        found = rasterize(meshes, cameras, blur, count, memory_mb=budget)
        soft = silhouette(meshes, cameras, 1e-3, memory_mb=budget)
        gradient, = torch.autograd.grad(found.dists.sum() + soft.sum(), moving)
        results.append([gradient] + [getattr(found, name) for name in FIELDS] + [soft])
        assert gradient.isfinite().all()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0][1:], other[1:]))
        # sums are computed in another order
        assert (results[0][0] - other[0]).norm() < 1e-5 * other[0].norm()


def test_the_hard_mask_is_the_limit_of_the_soft_one():
    verts, faces = random_triangles(6, 9, behind=False)
    meshes, cameras = pack(verts, faces), view(32, 24, 20.0)
    hard = rasterize(meshes, cameras).pix_to_face[..., 0] >= 0
    assert ((silhouette(meshes, cameras, 1e-9) > 0.5) == hard).all()
    nearer = rasterize(meshes, cameras, 1e-9, 6)
    colors = torch.rand(6, 3, dtype=torch.float64)[nearer.pix_to_face.clamp(min=0)]
    soft = soft_blend(colors, nearer, torch.zeros(3, dtype=torch.float64), 1e-9, 1e-6)
    assert torch.allclose(soft[hard], colors[..., 0, :][hard], atol=1e-3)
    assert (soft[~hard] < 1e-3).all()


def test_a_batch_of_scenes_of_different_size_equals_each_alone():
    verts, faces = random_triangles(7, 10, behind=True)
    scene = torch.tensor([0, 0, 0, 0, 0, 2, 2]).repeat_interleave(3)  # scene 1 is empty
    together = rasterize(pack(verts, faces, scene, 3), view(20, 15, 12.0, scenes=3), 0.01, 4)
    for b, own in ((0, slice(0, 5)), (1, slice(0, 0)), (2, slice(5, 7))):
        first = own.start
        few = pack(verts[3 * own.start:3 * own.stop], faces[own] - 3 * first)
        alone = rasterize(few, view(20, 15, 12.0), 0.01, 4)
        assert torch.equal(
            torch.where(together.pix_to_face[b] >= 0, together.pix_to_face[b] - first, -1),
            alone.pix_to_face[0],
        )
        assert torch.equal(together.dists[b], alone.dists[0])


def test_a_projected_square_equals_its_outline():
    """2 m wide, 4 m away, at a focal length of 10 px: 5 px wide around the principal point."""
    verts = torch.tensor([[-1.0, -1, 4], [1, -1, 4], [1, 1, 4], [-1, 1, 4]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    cameras = view(20, 20, 10.0)  # principal point (9, 11): columns 6.5 to 11.5, rows 8.5 to 13.5
    seen = rasterize(pack(verts, faces), cameras).pix_to_face[0, ..., 0] >= 0
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[9:13, 7:11] = True
    edge = torch.zeros_like(expected)  # pixels whose center is on the outline may be in or out
    edge[8:14, 6:12] = True
    assert (seen[~edge | expected] == expected[~edge | expected]).all()


DEGENERATE = {  # three corners each, in a camera that looks along +z
    "before": [(-1, -1, 2), (1, -1, 2), (0, 1, 3)],
    "zero area": [(0, 0, 2), (0, 0, 2), (0, 0, 2)],
    "a line": [(-1, 0, 2), (0, 0, 2), (1, 0, 2)],
    "edge-on": [(0, 0, 1), (0, 0, 2), (0, 0, 3)],
    "on the camera's plane": [(-1, -1, 0), (1, -1, 0), (0, 1, 0)],
    "at the eye": [(0, 0, 0), (1, 0, 2), (0, 1, 2)],
    "behind": [(-1, -1, -2), (1, -1, -2), (0, 1, -3)],
    "across": [(-1, -1, -2), (1, -1, 2), (0, 1, 3)],
    "the ground": [(-1e3, 1, -1e3), (1e3, 1, -1e3), (0, 1, 1e3)],
    "on the near plane": [(-1, -1, NEAR_M), (1, -1, NEAR_M), (0, 1, 2)],
}
corner = st.tuples(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(0.5, 4))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(st.sampled_from(list(DEGENERATE.values())), st.tuples(corner, corner, corner)),
        max_size=4,
    ),
    st.booleans(),
    st.sampled_from([(1, 1), (5, 3)]),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_degenerate_scenes_give_finite_images_and_gradients(
    triangles, twice, size, scale, from_eye, dtype
):
    """Zero, degenerate or duplicate faces, scaled about the eye or about a point in front of it."""
    origin = torch.tensor([0.0, 0.0, 0.0 if from_eye else 2.0], dtype=dtype)
    verts = torch.tensor(triangles, dtype=dtype).reshape(-1, 3)
    verts = (origin + scale * (verts - origin)).requires_grad_()
    faces = torch.arange(len(verts)).view(-1, 3).repeat(2 if twice else 1, 1)
    fixed = view(*size, 4.0, dtype)
    inputs = [verts, *(part.clone().requires_grad_() for part in (fixed.K, fixed.R, fixed.t))]
    meshes, cameras = pack(verts, faces), Cameras(*inputs[1:], *size)
    found = rasterize(meshes, cameras, 0.01, 3)
    soft = silhouette(meshes, cameras, 1e-2)
    image = soft_blend(
        torch.ones(*found.zbuf.shape, 3, dtype=dtype), found, torch.zeros(3, dtype=dtype),
        1e-2, 1e-2
    )
    values = (found.zbuf, found.bary_coords, found.dists, soft, image)
    assert all(value.isfinite().all() for value in values)
    seen = found.pix_to_face >= 0
    assert (found.bary_coords[seen].sum(-1) - 1).abs().max() < 1e-4 if seen.any() else True
    gradients = torch.autograd.grad(
        sum(value.sum() for value in values) + 0 * sum(part.sum() for part in inputs), inputs
    )
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    "name, drawn",
    [
        ("before", True),
        ("across", True),
        ("the ground", True),
        ("on the near plane", True),
        ("at the eye", False),
        ("behind", False),
        ("zero area", False),
        ("edge-on", False),
    ],
)
def test_what_the_degenerate_faces_draw(name, drawn):
    verts = torch.tensor(DEGENERATE[name], dtype=torch.float64)
    found = rasterize(pack(verts, torch.tensor([[0, 1, 2]])), view(16, 12, 8.0))
    assert (found.pix_to_face >= 0).any() == drawn


def test_no_scene_and_no_object_are_images_too():
    nothing = pack(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), scenes=0)
    cameras = Cameras(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3), torch.zeros(0, 3), 8, 6)
    assert rasterize(nothing, cameras, 0.0, 2).zbuf.shape == (0, 6, 8, 2)
    assert silhouette(nothing, cameras, 1e-3).shape == (0, 6, 8)
    empty = silhouette(
        pack(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)),
        view(8, 6, 4.0, torch.float32),
        1e-3,
    )
    assert (empty == 0).all() and not empty.signbit().any()
    scene = Scene((), ENV.world.camera, (), Sky((0.2,) * 3, (0.4,) * 3), Material((0.5,) * 3))
    meshes, cameras = build([scene], ENV.world.assets), stack_cameras([scene.camera], 16, 12)
    assert shade(rasterize(meshes, cameras), meshes, cameras, [scene]).isfinite().all()


# --- PyTorch3D itself, where it is installed ------------------------------------------------------

@pytest.mark.skipif(importlib.util.find_spec("pytorch3d") is None,
                    reason="PyTorch3D is not installed")
@pytest.mark.parametrize("blur_radius, count", [(0.0, 1), (1e-3, 10)])
def test_the_pytorch3d_backend_agrees_on_clevr(blur_radius, count):
    """Four random scenes of different sizes: equal faces, fields and shaded images."""
    generators = [np.random.default_rng([3, i]) for i in range(4)]
    scenes = [ENV.sample(ENV, domain, "paper", rng)
              for domain, rng in zip(("source", "target", "source", "target"), generators)]
    meshes, cameras = (
        build(scenes, ENV.world.assets),
        stack_cameras([scene.camera for scene in scenes], 160, 120),
    )
    fine = scale_cameras(cameras, SUPERSAMPLE)
    ours, theirs = (rasterize_with(meshes, fine, blur_radius, count, cull_backfaces=True)
                    for rasterize_with in (rasterize, pytorch3d.rasterize))
    same = ours.pix_to_face == theirs.pix_to_face
    # ties along shared edges differ
    assert same[..., 0].float().mean() > 0.999 and same.float().mean() > 0.998
    for name, most in (("zbuf", 1e-3), ("bary_coords", 2e-3), ("dists", 1e-6)):
        difference = (getattr(ours, name) - getattr(theirs, name))[same].abs()
        assert difference.max() < most and difference.float().mean() < most / 100, name
    if count == 1:
        images = [shade(fragments, meshes, cameras, scenes) for fragments in (ours, theirs)]
        assert (images[0] - images[1]).abs().max() < 1 / 255


# --- CUDA -----------------------------------------------------------------------------------------

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_agrees_with_the_cpu():
    """Fields, silhouette, image and gradient of random scenes."""
    generators = [np.random.default_rng([4, i]) for i in range(3)]
    scenes = [ENV.sample(ENV, "source", "strong", rng) for rng in generators]
    results = []
    for device in ("cpu", "cuda"):
        meshes, cameras = (
            build(scenes, ENV.world.assets, device),
            stack_cameras([s.camera for s in scenes], 80, 60, device),
        )
        meshes = replace(meshes, verts_world=meshes.verts_world.requires_grad_())
        found, soft = rasterize(meshes, cameras, 1e-3, 4), silhouette(meshes, cameras, 1e-4)
        gradient, = torch.autograd.grad(soft.sum(), meshes.verts_world)
        image = shade(rasterize(meshes, scale_cameras(cameras, 2)), meshes, cameras, scenes)
        results.append(
            [part.detach().cpu() for part in (found.pix_to_face, found.zbuf, soft, gradient, image)]
        )
    (faces, zbuf, soft, gradient, image), (faces2, zbuf2, soft2, gradient2, image2) = results
    same = faces == faces2
    assert same.float().mean() > 0.998 and (zbuf - zbuf2)[same].abs().max() < 1e-3
    assert ((soft - soft2).abs().max() < 1e-3
            and torch.cosine_similarity(gradient.flatten(), gradient2.flatten(), 0) > 0.999)
    assert (image - image2).abs().mean() < 1e-4
