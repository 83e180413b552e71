"""Shading against values computed by hand: units, materials, shadows, textures; gradients."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.clevr import ENV
from sim2sg_lib.sim import large_images
from sim2sg_lib.camera import Camera, look_at, stack_cameras
from sim2sg_lib.sim.large_images import shade_large, share_samples
from sim2sg_lib.sim.lighting import (
    ambient_occlusion, bounding_spheres, looking_at, pack_lighting, shadow_visibility)
from sim2sg_lib.sim.meshes import (
    Poses, box_mesh, build, object_poses, pack_textures, place, pose_mesh)
from sim2sg_lib.sim.rasterizer import rasterize, scale_cameras
from sim2sg_lib.sim.shading import (
    DIELECTRIC, SHOULDER, SUPERSAMPLE, ggx, shade, shade_soft, tone_map)
from sim2sg_lib.scene import (
    PATTERNS, Light, Material, Room, Scene, SceneObject, Sky, Strip, Texture)
from sim2sg_lib.sim.texture import PATTERN, textured, value_noise

BLACK = Sky((0.0,) * 3, (0.0,) * 3)


def unit(*vector):
    vector = torch.tensor([vector], dtype=torch.float64)
    return vector / vector.norm()


def pictures(scenes, width=64, height=48, shade=shade):
    meshes = build(scenes, ENV.world.assets)
    cameras = stack_cameras([scene.camera for scene in scenes], width, height)
    fragments = rasterize(meshes, scale_cameras(cameras, SUPERSAMPLE), cull_backfaces=True)
    return shade(fragments, meshes, cameras, scenes)


def picture(scene, width=64, height=48):
    return pictures([scene], width, height)[0]


# --- units ----------------------------------------------------------------------------------------

def test_a_lamp_overhead_lights_the_ground_by_the_inverse_square():
    camera = look_at((0, -6, 6), (0, 0, 0), 60, 65, 49)
    for height_m in (2.0, 4.0):
        scene = Scene(
            (),
            camera,
            (Light((0.0, 0.0, height_m), (2.0, 2.0, 2.0)),),
            BLACK,
            Material((0.5, 0.25, 0.1)),
        )
        found = picture(scene, 65, 49)[:, 24, 32]  # the pixel whose center looks at the origin
        expected = np.array([0.5, 0.25, 0.1]) * 2 / height_m ** 2
        assert found.numpy() == pytest.approx(expected ** (1 / 2.2), rel=1e-3)


def test_a_sun_lights_everywhere_alike_and_by_the_cosine():
    camera = look_at((0, -6, 6), (0, 0, 0), 60, 64, 48)
    scene = Scene(
        (),
        camera,
        (Light((0.0, 3.0, 4.0), (0.5, 0.5, 0.5), directional=True),),
        BLACK,
        Material((0.5,) * 3),
    )
    found = picture(scene)[0, 20:]  # below the horizon
    assert found.numpy() == pytest.approx((0.5 * 0.5 * 0.8) ** (1 / 2.2), rel=1e-4)


def test_the_sky_fills_the_picture_above_the_horizon():
    camera = look_at((0, -6, 1), (0, 0, 1), 60, 64, 48)  # the horizon runs through the middle
    scene = Scene((), camera, (), Sky((0.1, 0.2, 0.4), (0.3, 0.3, 0.3)), Material((0.0,) * 3))
    found = picture(scene)
    assert found[:, 23].numpy() == pytest.approx(0.3 ** (1 / 2.2), abs=0.06)
    assert found[2, 0, 32] - found[0, 0, 32] > 0.03  # bluer higher up
    assert found[:, 26:].max() < 0.01                # the ground below is black


def test_tone_mapping_is_the_srgb_exponent_with_a_shoulder():
    dark, bright = torch.tensor([0.0, 0.1, 0.3]), torch.tensor([1.0, 3.0, 1e6])
    one = torch.tensor(1.0)
    assert tone_map(dark, one).tolist() == pytest.approx(
        [0.001873, 0.1 ** (1 / 2.2), 0.3 ** (1 / 2.2)], rel=1e-3
    )
    curve = tone_map(bright, one)
    assert (curve[1:] > curve[:-1]).all() and curve[0] > SHOULDER and curve[-1] <= 1
    assert torch.equal(tone_map(dark * 2, one), tone_map(dark, one * 2))


# --- materials ------------------------------------------------------------------------------------

def test_ggx_in_the_mirror_direction_by_hand():
    """The normal is the half vector: view and lamp are 30 degrees from it on opposite sides."""
    normal, view, lamp = unit(0, 0, 1), unit(1, 0, 3 ** 0.5), unit(-1, 0, 3 ** 0.5)
    mirror, roughness = (
        torch.full((1, 3), 0.04, dtype=torch.float64),
        torch.tensor([[0.5]], dtype=torch.float64),
    )
    alpha, k, cosine = 0.25, 1.5 ** 2 / 8, 3 ** 0.5 / 2
    fresnel = 0.04 + 0.96 * (1 - cosine) ** 5
    expected = 1 / alpha ** 2 * fresnel / 4 / (cosine * (1 - k) + k) ** 2
    assert ggx(normal, view, lamp, mirror, roughness)[0].tolist() == pytest.approx(
        [expected] * 3, rel=1e-6
    )
    # symmetric in view and lamp, and weaker away from the mirror direction
    assert torch.allclose(
        ggx(normal, view, lamp, mirror, roughness), ggx(normal, lamp, view, mirror, roughness)
    )
    assert (ggx(normal, view, unit(-1, 1, 3 ** 0.5), mirror, roughness) < expected).all()


def test_a_white_mirror_reflects_no_more_than_it_receives():
    """Integrates over the hemisphere of lamp directions; ggx contains a factor of pi."""
    polar, turn = torch.meshgrid(
        torch.linspace(0.002, np.pi / 2 - 0.002, 300, dtype=torch.float64),
        torch.linspace(0, 2 * np.pi, 300, dtype=torch.float64), indexing="ij")
    lamps = torch.stack(
        [polar.sin() * turn.cos(), polar.sin() * turn.sin(), polar.cos()], -1).view(-1, 3)
    step = (np.pi / 2 / 300) * (2 * np.pi / 300)
    for roughness in (0.4, 0.8):
        gain = ggx(unit(0, 0, 1), unit(1, 0, 1), lamps, torch.ones(1, 3, dtype=torch.float64),
                   torch.tensor([[roughness]], dtype=torch.float64))[:, 0]
        total = float((gain / np.pi * lamps[:, 2] * polar.sin().view(-1)).sum() * step)
        assert 0.4 < total < 1.05


def test_highlights_are_colored_on_metal_and_white_on_rubber():
    camera = look_at((0, -6, 3), (0, 0, 0.5), 120, 64, 48)
    lamp = Light((0.0, -6.0, 5.0), (4.0,) * 3)  # no highlight reaches the shoulder
    brightest = {}
    for metallic in (0.0, 1.0):
        ball = SceneObject(
            1, "sphere", (0, 0, 0), (1, 1, 1), 0.0, Material((0.8, 0.1, 0.1), metallic, 0.3)
        )
        image = picture(Scene((ball,), camera, (lamp,), BLACK, Material((0.0,) * 3)))
        peak = image.sum(0).argmax()
        brightest[metallic] = (image.flatten(1)[:, peak] ** 2.2).tolist()
    green = {metallic: color[1] / color[0] for metallic, color in brightest.items()}
    assert green[1.0] < 0.25 and green[0.0] > 1.5 * green[1.0]
    assert DIELECTRIC < 0.1


# --- shadows --------------------------------------------------------------------------------------

def test_shadows_agree_with_a_ray_to_the_lamp():
    """Points around a ball are dark exactly where the segment to the lamp intersects it."""
    ball = SceneObject(1, "sphere", (0, 0, 0), (1, 1, 1), 0.0, Material())
    camera = look_at((0, -8, 6), (0, 0, 0), 60, 64, 48)
    lamp = np.array([-2.0, 1.0, 4.0])
    scene = Scene((ball,), camera, (Light(tuple(lamp), (1.0,) * 3),), BLACK, Material())
    meshes = build([scene], ENV.world.assets)
    light = pack_lighting([scene], meshes, meshes.verts_world)
    x, y = np.meshgrid(np.linspace(-2, 2, 41), np.linspace(-2, 2, 41))
    points = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], 1)
    along = lamp - points
    t = ((np.array([0, 0, 0.5]) - points) * along).sum(1) / (along ** 2).sum(1)
    closest = np.linalg.norm(points + t.clip(0, 1)[:, None] * along - [0, 0, 0.5], axis=1)
    found = shadow_visibility(
        light.shadows[0], torch.zeros(len(points), dtype=torch.int64),
        torch.from_numpy(points).float()
    ).numpy()
    # excludes the soft edge, and the point where the ball touches the ground
    sure = (abs(closest - 0.5) > 0.04) & (np.linalg.norm(points, axis=1) > 0.05)
    assert (closest < 0.46).sum() > 30
    assert np.array_equal(found[sure] > 0.5, closest[sure] > 0.5)


def test_an_object_shades_another_and_not_its_lit_side():
    camera = look_at((0, -8, 4), (0, 0, 0.5), 100, 64, 48)
    sun = Light((-1.0, 0.0, 0.2), (1.0,) * 3, directional=True)
    near, far = (
        SceneObject(0, "cube", (x, 0, 0), (1, 1, 1), 0.0, Material((0.8,) * 3)) for x in (-1.5, 1.5)
    )
    meshes = build([Scene((near, far), camera, (sun,), BLACK, Material())], ENV.world.assets)
    light = pack_lighting(
        [Scene((near, far), camera, (sun,), BLACK, Material())], meshes, meshes.verts_world
    )
    # on left sides, which face the sun; the second is in shadow, the third above it
    points = torch.tensor([[-2.0, 0.0, 0.5], [1.0, 0.0, 0.3], [1.0, 0.0, 0.9]])
    assert shadow_visibility(
        light.shadows[0], torch.zeros(3, dtype=torch.int64), points).tolist() == [1, 0, 1]


def test_every_object_is_in_view_of_its_shadow_camera():
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(5):
        scenes.append(ENV.sample(ENV, "source", "strong", rng))
    meshes = build(scenes, ENV.world.assets)
    center, radius = bounding_spheres(meshes, 5)
    assert (
        (meshes.verts_world - center[meshes.vert_scene]).norm(dim=1) <= radius[meshes.vert_scene]
    ).all()
    cameras = looking_at(center, radius, center + torch.tensor([0.0, 0.0, 20.0]), 192)
    found = cameras.homogeneous_px(meshes.verts_world, meshes.vert_scene)
    px, depth = found[:, :2] / found[:, 2:], found[:, 2]
    assert (px >= 0).all() and (px <= cameras.width).all() and (depth > 0).all()


def test_ambient_occlusion_grows_towards_the_object():
    ball = SceneObject(1, "sphere", (0, 0, 0), (1, 1, 1), 0.0, Material())
    scene = Scene((ball,), look_at((0, -8, 4), (0, 0, 0), 60, 64, 48), (), BLACK, Material())
    points = torch.tensor([[0.6, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [9.0, 0, 0]])
    visible = ambient_occlusion(
        build([scene], ENV.world.assets), torch.zeros(4, dtype=torch.int64), points
    )
    assert (visible[1:] > visible[:-1]).all() and visible[0] < 0.8 and visible[-1] > 0.999


# --- textures -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_stay_in_range_vary_and_repeat(name):
    points = 8 * torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) - 4
    seed = torch.full((4000,), 3)
    share = PATTERN[name](points, seed)
    assert 0 <= share.min() and share.max() <= 1 and share.std() > 0.03
    assert torch.equal(share, PATTERN[name](points, seed))
    if name not in ("checks",):  # checks have no random part
        assert not torch.equal(share, PATTERN[name](points, seed + 1))


def test_checks_and_mix_by_hand():
    points = torch.tensor([[0.5, 0.5, 0.5], [1.5, 0.5, 0.5], [1.5, 1.5, 0.5], [-0.5, 0.5, 0.5]])
    textures = pack_textures(
        [Material(texture=Texture("checks", (0.0, 0.0, 1.0), 1.0, 0.5)), Material()],
        "cpu",
        torch.float32,
    )
    plain = torch.tensor([[1.0, 0.0, 0.0]]).repeat(4, 1)
    mixed = textured(plain, textures, torch.zeros(4, dtype=torch.int64), points)
    assert mixed.tolist() == [[1, 0, 0], [0.5, 0, 0.5], [1, 0, 0], [0.5, 0, 0.5]]
    assert torch.equal(textured(plain, textures, torch.ones(4, dtype=torch.int64), points), plain)


def test_noise_is_continuous_and_has_the_lattice_s_values():
    seed = torch.tensor([5])
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0 - 1e-4, 2.0, 3.0]])
    assert value_noise(a, seed).item() == pytest.approx(value_noise(b, seed).item(), abs=1e-3)


# --- gradients ------------------------------------------------------------------------------------

def soft_image_inputs(texture):
    """A box on the ground under a lamp, in float64.

    Returns the inputs by name, and a function from the inputs to the soft image. Shadow maps are
    constants, since a comparison of depths has no gradient.
    """
    box = SceneObject(0, "box", (0.1, 0.2, 0.0), (1.0, 1.2, 0.9), 0.4,
                      Material((0.3, 0.5, 0.2), 0.3, 0.5, texture))
    # z = 0 is the edge of a row of bricks, where the pattern is discontinuous
    ground = None if texture and texture.pattern == "brick" else texture
    scene = Scene((box,), look_at((0.4, -4.0, 2.2), (0, 0, 0.3), 8.0, 6, 5),
                  (Light((1.0, -3.0, 4.0), (9.0, 8.0, 7.0)),),
                  Sky((0.2, 0.3, 0.4), (0.4, 0.3, 0.2)),
                  Material((0.4, 0.3, 0.3), roughness=1.0, texture=ground))
    fixed = build([scene], {"box": box_mesh()}, dtype=torch.float64)
    view = stack_cameras([scene.camera], 6, 5, dtype=torch.float64)
    light, poses = pack_lighting([scene], fixed, view.K), object_poses([scene])
    names = {
        "poses": ("position_world", "size_m", "yaw_rad"),
        "material": ("color", "metallic", "roughness"),
        "light": ("lamp_world", "intensity", "zenith", "horizon", "ground_color", "exposure"),
        "camera": ("K", "R", "t"),
    }
    owners = {"poses": poses, "material": fixed, "light": light, "camera": view}
    inputs = {name: getattr(owners[group], name) for group, row in names.items() for name in row}
    inputs |= {"texture_color": fixed.texture.color, "amount": fixed.texture.amount}

    def image(values):
        def part(group):
            return {name: values[name] for name in names[group]}

        patterns = replace(fixed.texture, color=values["texture_color"], amount=values["amount"])
        meshes = place(replace(fixed, **part("material"), texture=patterns), Poses(**part("poses")))
        cameras, lit = replace(view, **part("camera")), replace(light, **part("light"))
        fragments = rasterize(meshes, cameras, 0.02, 3, cull_backfaces=True)
        return shade_soft(fragments, meshes, cameras, [scene], 1e-2, 1e-1, lit)

    return {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}, image


def change(image, inputs, name, direction, step=1e-6):
    """Central difference of the whole image along a direction of one input."""
    ends = [image({**inputs, name: inputs[name] + sign * step * direction}).detach()
            for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("name", [
    "position_world", "size_m", "yaw_rad", "color", "metallic", "roughness", "lamp_world",
    "intensity", "K", "R", "t"])
def test_gradients_of_a_whole_image_are_those_of_finite_differences(name):
    """Derivatives of a randomly weighted sum of all pixels by each component of an input."""
    inputs, image = soft_image_inputs(None)
    weight = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradient, = torch.autograd.grad((image(inputs) * weight).sum(), inputs[name])
    numeric = torch.zeros_like(gradient)
    for i in range(gradient.numel()):
        direction = torch.zeros_like(gradient)
        direction.view(-1)[i] = 1
        numeric.view(-1)[i] = (change(image, inputs, name, direction) * weight).sum()
    assert gradient.abs().max() > 1e-3
    assert gradient.flatten().tolist() == pytest.approx(
        numeric.flatten().tolist(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_textured_images_reach_every_input(pattern):
    """All inputs, each along a random direction, for every texture."""
    inputs, image = soft_image_inputs(Texture(pattern, (0.9, 0.8, 0.2), 0.37, 0.6, 5))
    gradients = torch.autograd.grad(image(inputs).sum(), list(inputs.values()))
    rng = torch.Generator().manual_seed(0)
    for name, gradient in zip(inputs, gradients):
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
        direction = torch.randn(gradient.shape, generator=rng, dtype=torch.float64)
        numeric = change(image, inputs, name, direction, 1e-7).sum().item()
        assert numeric == pytest.approx(
            (gradient * direction).sum().item(), rel=1e-3, abs=1e-6), name


def test_a_posed_asset_is_the_same_as_tensors_and_in_numpy():
    row = (SceneObject(0, "cube", (0.1, 0.2, 0.5), (1.0, 2.0, 0.5), 0.7),
           SceneObject(1, "sphere", (-3.0, 0.0, 0.0), (0.5, 1.0, 2.0), -2.0))
    meshes = build(
        [Scene(row, ENV.world.camera, (), BLACK, Material())], ENV.world.assets, dtype=torch.float64
    )
    posed = [pose_mesh(ENV.world.assets[o.asset], o.position_world, o.size_m, o.yaw_rad)
             for o in row]
    np.testing.assert_allclose(
        meshes.verts_world, np.concatenate([mesh.verts for mesh in posed]), atol=1e-12
    )
    np.testing.assert_allclose(
        meshes.normals_world, np.concatenate([mesh.normals for mesh in posed]), atol=1e-12
    )


def test_the_soft_image_becomes_the_hard_one():
    scene = Scene(
        (
            SceneObject(
                0, "box", (0.1, 0.2, 0.0), (1.0, 1.2, 0.9), 0.4, Material((0.3, 0.5, 0.2), 0.0, 0.5)
            ),
        ),
        look_at((0.4, -4.0, 2.2), (0, 0, 0.3), 40.0, 32, 24),
        (Light((1.0, -3.0, 4.0), (9.0, 8.0, 7.0)),),
        Sky((0.2, 0.3, 0.4), (0.4, 0.3, 0.2)),
        Material((0.4, 0.3, 0.3), roughness=1.0),
    )
    meshes, cameras = build([scene], {"box": box_mesh()}), stack_cameras([scene.camera], 32, 24)
    hard = shade(rasterize(meshes, cameras, cull_backfaces=True), meshes, cameras, [scene])
    soft = shade_soft(
        rasterize(meshes, cameras, 1e-10, 3, cull_backfaces=True), meshes, cameras, [scene],
        1e-12, 1e-6
    )
    assert (soft - hard).abs().max() < 1e-3


# --- what is behind the objects -------------------------------------------------------------------

WHITE_SKY = Sky((1.0,) * 3, (1.0,) * 3)


def from_above(width=60, height=60):
    """A camera 10 m above the origin that sees 6 m by 6 m of ground, 10 pixels per meter, y up."""
    return Camera(np.array([[100.0, 0, width / 2], [0, 100.0, height / 2], [0, 0, 1]]),
                  np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]), np.array([0, 0, 10.0]),
                  width, height)


def painted(strips, camera=None):
    """(H, W) display values of strips painted on black ground under a white sky."""
    camera = camera or from_above()
    scene = Scene((), camera, (), WHITE_SKY, Material((0.0,) * 3), strips=strips)
    return picture(scene, camera.width, camera.height)[0]


def test_a_strip_covers_its_rectangle_and_half_of_the_pixels_that_its_edge_halves():
    white = Material((0.5,) * 3)
    found = painted((Strip((1.0, 0.0), (2.0, 1.0), 0.0, white),))
    full = 0.5 ** (1 / 2.2)
    expected = np.zeros((60, 60))
    expected[25:35, 30:50] = full  # x from 0 to 2 m, y from -0.5 to 0.5 m
    np.testing.assert_allclose(found.numpy(), expected, atol=0.003)
    # both ends lie in the middle of a pixel
    half = painted((Strip((1.05, 0.0), (2.0, 1.0), 0.0, white),))
    edge = 0.25 ** (1 / 2.2)
    np.testing.assert_allclose(
        half[30, [30, 31, 49, 50]].numpy(), [edge, full, full, edge], atol=0.003)


def test_a_strip_turned_by_a_quarter_lies_across_and_the_later_lies_on_top():
    dark, bright = Material((0.1,) * 3), Material((0.5,) * 3)
    found = painted(
        (Strip((0.0, 0.0), (6.0, 2.0), 0.0, dark), Strip((0.0, 0.0), (6.0, 1.0), np.pi / 2, bright))
    )
    assert found[30, 30] == pytest.approx(0.5 ** (1 / 2.2), abs=0.003)
    assert found[30, 10] == pytest.approx(0.1 ** (1 / 2.2), abs=0.003)
    assert found[5, 30] == pytest.approx(0.5 ** (1 / 2.2), abs=0.003) and found[5, 10] < 0.005


def test_dashes_and_gaps_are_equally_long():
    found = painted((Strip((0.0, 0.0), (6.0, 1.0), 0.0, Material((0.5,) * 3), 1.0),))[30]
    marks = (found > 0.5).numpy()
    # marks of 1 m around every odd meter along the strip
    assert marks.tolist() == [
        abs((i + 0.5) / 10 - 3) % 2 > 0.5 and abs((i + 0.5) / 10 - 3) % 2 < 1.5 for i in range(60)
    ]


def test_a_line_thinner_than_a_pixel_fades():
    found = painted((Strip((0.0, 0.05), (6.0, 0.02), 0.0, Material((0.5,) * 3)),))
    assert found[29, 30] == pytest.approx((0.5 * 0.2) ** (1 / 2.2), abs=0.02)


def test_walls_meet_the_floor_where_they_stand_and_end_at_their_height():
    """A wall 5 m away, seen from 1 m above the floor.

    Its bottom edge is 1/5 of the focal length below the image center, its top edge 2/5 above.
    """
    camera = look_at((0, 0, 1), (0, 5, 1), 50, 64, 64)
    room = Room((-4.0, -2.0), (4.0, 5.0), 3.0, Material((0.5, 0.0, 0.0)))
    scene = Scene((), camera, (), WHITE_SKY, Material((0.0, 0.5, 0.0)), room=room)
    found = picture(scene, 64, 64)[:, :, 32]
    red, green = (found[0] > 0.5) & (found[1] < 0.1), (found[1] > 0.5) & (found[0] < 0.1)
    assert red.nonzero()[:, 0].tolist() == list(range(32 - 20, 32 + 10))  # z from 0 to 3 m
    assert green.nonzero()[:, 0].tolist() == list(range(32 + 10, 64))
    assert (found[:, :12] > 0.9).all()                                     # the sky above the wall


def test_a_wall_is_lit_by_the_lamp_it_faces():
    camera = look_at((0, 0, 1), (0, 5, 1), 50, 65, 65)
    room = Room((-4.0, -2.0), (4.0, 5.0), 3.0, Material((0.5,) * 3))
    lamp = Light((0.0, 3.0, 1.0), (2.0, 2.0, 2.0))  # 2 m before the wall
    found = picture(Scene((), camera, (lamp,), BLACK, Material((0.0,) * 3), room=room), 65, 65)
    assert found[0, 32, 32] == pytest.approx((0.5 * 2 / 4) ** (1 / 2.2), rel=2e-3)


def test_clouds_whiten_the_sky_as_much_as_asked():
    camera = look_at((0, 0, 1), (0, 5, 3), 40, 64, 64)
    pictures = [
        picture(
            Scene((), camera, (), Sky((0.0, 0.1, 0.5), (0.5, 0.5, 0.5), clouds, 7),
                  Material((0.0,) * 3)),
            64, 64)
        for clouds in (0.0, 0.4, 1.0)
    ]
    clear, some, many = (image[0, :30] for image in pictures)
    # clouds are brighter than the blue sky
    assert (some >= clear - 1e-6).all() and (many >= some - 1e-6).all()
    assert (some > clear + 0.02).float().mean() < (many > clear + 0.02).float().mean()


def both_ways(scene):
    """(H, W) difference between shade and shade_large, maximum over the color channels."""
    size = scene.camera.width, scene.camera.height
    return (picture(scene, *size) - pictures([scene], *size, shade_large)[0]).abs().amax(0)


def test_large_pictures_share_samples_and_look_the_same():
    """A ball and a box, shaded per sample and per pixel and face.

    The silhouettes are equal, the interiors nearly so.
    """
    objects = (SceneObject(0, "sphere", (-0.6, 0.0, 0.0), (1.0,) * 3, 0.0),
               SceneObject(0, "cube", (0.7, 0.2, 0.0), (0.8,) * 3, 0.4))
    lamp = Light((2.0, -3.0, 4.0), (9.0,) * 3)
    difference = both_ways(Scene(objects, look_at((0, -4, 2), (0, 0, 0.4), 70, 64, 48), (lamp,),
                                 Sky((0.2,) * 3, (0.3,) * 3), Material((0.4,) * 3)))
    assert (difference.median() < 0.0005 and difference.mean() < 0.003
            and 0 < difference.max() < 0.15)


@pytest.mark.parametrize("size", [(128, 96), (129, 97)])
def test_large_pictures_do_not_mix_the_light_of_two_surfaces(size):
    """Two walls, floor and sky, a lamp in the corner: each surface is as bright as it should be."""
    room = Room((-3.0, -2.0), (3.0, 2.5), 2.0, Material((0.6, 0.5, 0.4)))
    scene = Scene(
        (),
        look_at((-1.0, -1.5, 1.2), (1.5, 2.0, 0.9), 80, *size),
        (Light((2.0, 1.5, 1.6), (2.0,) * 3),),
        Sky((0.1,) * 3, (0.2,) * 3),
        Material((0.4,) * 3),
        room=room,
    )
    difference = both_ways(scene)
    assert 0 < difference.max() < 0.01


def test_a_large_picture_is_the_same_alone_and_in_a_batch(monkeypatch):
    monkeypatch.setattr(large_images, "BAND_PIXELS", 700)
    rng = np.random.default_rng(0)
    scenes = [ENV.sample(ENV, domain, "strong", rng) for domain in ("source", "target", "source")]
    for scene, together in zip(scenes, pictures(scenes, shade=shade_large)):
        alone = pictures([scene], shade=shade_large)[0]
        assert torch.equal((255 * alone).round(), (255 * together).round())


def test_shared_samples_are_the_first_of_their_pixel_and_face():
    face, pixel = torch.tensor([7, 7, 5, 7, 5, 5]), torch.tensor([0, 0, 0, 1, 1, 1])
    shaded, among = share_samples(face, pixel, 2)
    # both pixels begin with face 7: samples that see face 5 are shaded on their own
    assert shaded.tolist() == [0, 2, 3, 4, 5] and among.tolist() == [0, 0, 1, 2, 3, 4]
