"""The fit of the look: gradients, known looks found again, what must not mislead it, bad images."""
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import envs
from conftest import ROOT, run
from envs.clevr import ENV
from sim2sg_lib.camera import stack_cameras
from sim2sg_lib.graph import make_graph
from sim2sg_lib.scene import (Light, Material, Room, Scene, SceneObject, Sky, Strip, Texture,
                              scene_from_json)
from sim2sg_lib.sim import look
from sim2sg_lib.sim.appearance import GROUPS, bounded, values_of, with_values
from sim2sg_lib.sim.lighting import pack_lighting
from sim2sg_lib.sim.look import (
    differences, explained, fit_look, fit_looks, fit_size, render, views_of)
from sim2sg_lib.sim.meshes import build
from sim2sg_lib.sim.rasterizer import rasterize, scale_cameras
from sim2sg_lib.sim.shading import shade
from sim2sg_lib.sim.sources import LiftedScenes
from sim2sg_lib.sim.variety import jittered, recolored
from sim2sg_lib.viz import drawings

SIZE = (80, 60)
GRAY = Material((0.4, 0.4, 0.4), roughness=1.0)
LAMPS = (Light((5.0, -3.0, 5.0), (25.0, 25.0, 24.0)), Light((-4.0, -4.0, 4.0), (9.0, 9.0, 10.0)))
SKY = Sky((0.35, 0.35, 0.35), (0.4, 0.4, 0.4))


def ball(x, y, color, size_m=1.4, label=1, **finish):
    """An object of CLEVR, by default a sphere."""
    asset = ENV.world.category_assets[label][0]
    return SceneObject(label, asset, (x, y, 0.0), (size_m,) * 3, 0.3, Material(color, **finish))


def scene(*objects, **fields):
    return replace(Scene(tuple(objects), ENV.world.camera, LAMPS, SKY, GRAY), **fields)


def picture(*scenes):
    """(B, 3, 60, 80): what the renderer shows, at the size of the fit."""
    meshes = build(list(scenes), ENV.world.assets)
    cameras = stack_cameras([one.camera for one in scenes], *SIZE)
    fragments = rasterize(meshes, scale_cameras(cameras, 2), cull_backfaces=True)
    return shade(fragments, meshes, cameras, list(scenes))


def fit(start, target, steps=30):
    return fit_look([start], target, ENV.world.assets, steps)[0]


# --- gradients ------------------------------------------------------------------------------------

def generic_scene():
    """Every group of parameters shows: two textured objects, a strip, walls, sky, a lamp, a sun."""
    noise = Texture("noise", (0.1, 0.6, 0.3), 0.4, 0.5, 3)
    wood = Texture("wood", (0.2, 0.2, 0.5), 0.7, 0.6, 5)
    ground = Material((0.5, 0.4, 0.3), roughness=1.0, texture=replace(noise, scale_m=1.1))
    cloth = Material((0.2, 0.3, 0.6), texture=wood)
    wall = Material((0.6, 0.3, 0.3), texture=replace(noise, scale_m=0.8, seed=9))
    return scene(
        ball(-0.7, 0.9, (0.7, 0.2, 0.2), metallic=0.4, roughness=0.4, texture=noise),
        ball(1.1, -0.8, (0.3, 0.5, 0.2), label=0, metallic=0.2, roughness=0.6, texture=wood),
        ground=ground, strips=(Strip((0.3, 0.2), (4.0, 1.5), 0.4, cloth),),
        room=Room((-6.0, -9.0), (9.0, 5.0), 2.0, wall), exposure=0.9,
        lights=(LAMPS[0], Light((0.3, -0.5, 0.8), (0.5, 0.6, 0.4), directional=True)),
        sky=Sky((0.3, 0.4, 0.6), (0.5, 0.5, 0.4)))


def test_gradients_of_every_group_are_those_of_finite_differences():
    """In float64, of the weighted error of an image, along random directions of each group."""
    one, generator = generic_scene(), torch.Generator().manual_seed(0)
    meshes = build([one], ENV.world.assets, dtype=torch.float64)
    up = replace(ENV.world.camera, R=ENV.world.camera.R)
    cameras = stack_cameras([up], 40, 30, dtype=torch.float64)
    light = pack_lighting([one], meshes, cameras.K)
    target = torch.rand(1, 3, 30, 40, generator=generator, dtype=torch.float64)
    views, start = views_of(meshes, light, cameras, target), values_of(meshes, light)
    assert views.background.wall.any() and views.background.ground.any()
    offsets = {name: 0.2 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
               for name, value in start.items()}

    def error(moved):
        values = {name: bounded(GROUPS[name], start[name], moved[name]) for name in start}
        return (differences(render(views, *with_values(meshes, light, values)), target)
                * views.weight).sum()

    leaves = {name: value.clone().requires_grad_() for name, value in offsets.items()}
    gradients = dict(zip(leaves, torch.autograd.grad(error(leaves), list(leaves.values()))))
    for name in GROUPS:
        for _ in range(3):
            way, step = torch.randn(offsets[name].shape, generator=generator, dtype=torch.float64), 1e-6
            ends = [error(offsets | {name: offsets[name] + sign * step * way}) for sign in (1, -1)]
            numeric = ((ends[0] - ends[1]) / (2 * step)).item()
            assert (gradients[name] * way).sum().item() == pytest.approx(numeric, rel=1e-4, abs=1e-8), name
        assert gradients[name].abs().max() > 0, name


def test_the_fit_renders_what_the_renderer_shows():
    """But for samples of one pixel and material, which share their color."""
    one = generic_scene()
    target = picture(one)
    meshes, cameras = build([one], ENV.world.assets), stack_cameras([one.camera], *SIZE)
    light = pack_lighting([one], meshes, cameras.K)
    ours = render(views_of(meshes, light, cameras, target), meshes, light)
    assert (ours - target).abs().mean() < 0.002
    assert fit_size(ENV.world.camera) == SIZE
    assert fit_size(envs.find("drive").world.camera) == (128, 39)


# --- known looks ----------------------------------------------------------------------------------

def test_a_look_that_was_changed_is_found_again():
    """Colors and exposure changed: the error falls tenfold; colors within 0.03, light within 3 %."""
    true = scene(ball(-1.0, 0.8, (0.6, 0.1, 0.1)), ball(1.2, -0.9, (0.1, 0.4, 0.5), label=0),
                 ball(0.9, 1.6, (0.5, 0.5, 0.2), 1.0, label=2))
    start = replace(true, exposure=0.75, ground=replace(GRAY, color=(0.5, 0.4, 0.35)), objects=tuple(
        replace(o, material=Material(color, roughness=0.7))
        for o, color in zip(true.objects, ((0.1, 0.5, 0.1), (0.6, 0.2, 0.6), (0.1, 0.1, 0.4)))))
    found = fit(start, picture(true), 120)
    assert found.kept and found.after < 0.1 * found.before

    def seen(one):  # what light and exposure make of the ground, and of each color over the ground's
        bright = one.exposure * sum(np.array(lamp.intensity) for lamp in one.lights)
        return bright * np.array(one.ground.color), [
            np.array(o.material.color) * np.mean(GRAY.color) / np.array(one.ground.color)
            for o in one.objects]

    (light, colors), (true_light, true_colors) = seen(found.scene), seen(true)
    assert light == pytest.approx(true_light, rel=0.03)
    assert np.array(colors) == pytest.approx(np.array(true_colors), abs=0.03)


def test_each_scene_is_fitted_alike_alone_and_in_company():
    scenes = [scene(ball(-1.0, 0.8, (0.6, 0.1, 0.1))), scene(), scene(ball(1.0, 0.0, (0.2, 0.2, 0.7)))]
    target = picture(*(replace(one, exposure=1.3) for one in scenes)).flip(1)
    together = fit_look(scenes, target, ENV.world.assets, 8)
    for i, one in enumerate(scenes):
        alone = fit(one, target[i:i + 1], 8)
        assert alone.after == pytest.approx(together[i].after, abs=1e-4)
        assert alone.scene.ground.color == pytest.approx(together[i].scene.ground.color, abs=2e-3)


def test_each_object_weighs_a_tenth_of_its_image_at_least():
    """A small ball a tenth, a large one its own area."""
    one = scene(ball(-2.5, -2.0, (0.6, 0.1, 0.1), 0.7), ball(1.0, 1.0, (0.1, 0.1, 0.6), 4.0))
    meshes, cameras = build([one], ENV.world.assets), stack_cameras([one.camera], *SIZE)
    views = views_of(meshes, pack_lighting([one], meshes, cameras.K), cameras, picture(one))
    hard = rasterize(meshes, scale_cameras(cameras, 2), cull_backfaces=True).pix_to_face[0, ..., 0]
    owner = torch.where(hard >= 0, meshes.face_object[hard.clamp(min=0)], -1)
    areas = [(owner == i).float().mean().item() for i in range(2)]
    assert 0 < areas[0] < 0.05 and areas[1] > 0.15
    expected = 0.1 + areas[1] + (1 - sum(areas))
    assert views.weight.sum().item() == pytest.approx(expected, rel=1e-4)
    around = [(owner == i).view(60, 2, 80, 2).amax((1, 3)) for i in range(2)]
    assert views.weight[0][around[0]].sum().item() == pytest.approx(0.1, rel=0.05)
    assert views.weight[0][around[1]].sum().item() == pytest.approx(areas[1], rel=0.05)


def test_a_scene_that_looks_like_its_image_keeps_its_look():
    """No step explains it better; the scene beside it is fitted all the same."""
    true = scene(ball(-1.0, 0.8, (0.6, 0.1, 0.1)))
    target = picture(true)
    same, other = fit_look([true, replace(true, exposure=0.7)], target.expand(2, -1, -1, -1),
                           ENV.world.assets, 8)
    assert not same.kept and same.scene == true and same.after == same.before < 0.01
    assert other.kept and other.after < 0.5 * other.before


def test_shadows_are_redrawn_with_the_lamps_that_have_moved(monkeypatch):
    """At steps 10, 20, ...; what is seen of the lamps changes with them."""
    drawn, made = [], look.shadow_maps
    monkeypatch.setattr(look, "shadow_maps", lambda meshes, lamps, *more: drawn.append(
        lamps.clone()) or made(meshes, lamps, *more))
    start = scene(ball(-1.0, 0.8, (0.6, 0.1, 0.1)))
    target = picture(replace(start, lights=(replace(LAMPS[0], position_world=(-5.0, -3.0, 5.0)),)))
    fit(start, target, 25)
    assert len(drawn) == 2
    assert 0.05 < (drawn[0][0, 0] - torch.tensor(LAMPS[0].position_world)).norm() < 4
    assert not torch.equal(*drawn)


def test_the_ground_gets_the_contrast_of_its_image():
    """From a plain start: noise as strong as the target's; a plain ground stays plain."""
    def ground(amount):
        noise = Texture("noise", (0.05,) * 3, 1.0, amount, seed=4)
        return scene(ground=Material((0.5,) * 3, roughness=1.0, texture=noise if amount else None))

    targets = [picture(ground(amount)) for amount in (0.0, 0.4, 0.9)]
    plain, *found = [fit(scene(), target, 25).scene.ground for target in targets]
    assert plain.texture is None and all(one.texture.pattern == "noise" for one in found)
    shown = [picture(scene(ground=one)).std().item() for one in found]
    assert shown == pytest.approx([target.std().item() for target in targets[1:]], rel=0.3)


@pytest.mark.parametrize("start_m", [None, 0.4])
def test_the_ground_gets_the_scale_of_its_image(start_m):
    """Of noise that is up to four times finer or coarser than what it starts from, or from none."""
    def ground(scale_m, seed, color):
        noise = scale_m and Texture("noise", (0.2,) * 3, scale_m, seed=seed)
        return scene(ground=Material(color, roughness=1.0, texture=noise))

    for wanted_m in (0.2, 0.4, 0.8, 1.6):
        target = picture(ground(wanted_m, 5, (0.6, 0.6, 0.6)))
        found = fit(ground(start_m, 9, (0.1, 0.2, 0.1)), target, 20).scene.ground.texture
        assert found.scale_m == pytest.approx(wanted_m, rel=0.2 if start_m else 0.5)
        assert found.amount == 1.0


def test_geometry_patterns_and_seeds_stay():
    one = generic_scene()
    found = fit(one, picture(one).flip(1), 4)
    assert found.kept and found.scene.exposure != one.exposure
    for old, new in zip(one.objects, found.scene.objects):
        assert replace(new, material=old.material) == old
        assert (new.material.texture.pattern, new.material.texture.seed) == (
            old.material.texture.pattern, old.material.texture.seed)
    assert found.scene.strips[0].size_m == one.strips[0].size_m and found.scene.camera is one.camera


# --- what the scene does not explain --------------------------------------------------------------

def test_an_undetected_object_does_not_paint_the_ground():
    """A dark blue ball that covers a seventh of the picture is not in the lifted scene."""
    seen = scene(ball(-1.5, 1.5, (0.6, 0.1, 0.1)), ball(1.0, -1.0, (0.01, 0.01, 0.4), 3.4))
    lifted = replace(seen, objects=seen.objects[:1])
    found = fit(lifted, picture(seen), 30).scene
    bare, true = (picture(replace(one, objects=())) for one in (found, seen))
    off = bare - true
    hidden = (picture(lifted) - picture(seen)).abs().mean(1, keepdim=True) > 0.1
    assert 0.05 < hidden.float().mean() < 0.4 and off.mean().abs() < 0.02
    assert off.abs().mean() < 0.06  # with the texture that it gives the ground
    blue = (off[:, 2:] - off[:, :1])[hidden]
    assert blue.mean().abs() < 0.03


def test_what_hides_the_sky_does_not_paint_it():
    """Brown houses over nearly all of the sky; with half of it in view, its color is found."""
    world = envs.find("drive").world
    road = Scene((), world.camera, (Light((0.3, -0.4, 0.8), (0.8,) * 3, directional=True),),
                 Sky((0.25, 0.35, 0.6), (0.5, 0.55, 0.6)), GRAY)
    size = fit_size(world.camera)
    meshes, cameras = build([road], world.assets), stack_cameras([world.camera], *size)
    fragments = rasterize(meshes, scale_cameras(cameras, 2), cull_backfaces=True)
    clear = shade(fragments, meshes, cameras, [road])
    start = replace(road, sky=Sky((0.3, 0.3, 0.4), (0.45, 0.5, 0.5)))
    for share, limit in ((0.9, None), (0.4, 0.08)):
        target, columns = clear.clone(), round(share * size[0])
        target[:, :, :size[1] // 2, :columns] = torch.tensor([0.4, 0.25, 0.15])[:, None, None]
        found = fit_look([start], target, world.assets, 30)[0].scene.sky
        assert found.horizon[2] > found.horizon[0] * 0.95  # never brown
        if limit:
            shown = replace(road, sky=found)
            assert found.horizon == pytest.approx(road.sky.horizon, abs=limit), shown


def test_explained_pixels_by_hand():
    """Nine tenths of the pixels differ by 0.01, one tenth by 0.5."""
    one = scene()
    target = picture(one)
    meshes, cameras = build([one], ENV.world.assets), stack_cameras([one.camera], *SIZE)
    views = views_of(meshes, pack_lighting([one], meshes, cameras.K), cameras, target)
    difference = torch.full((1, 60, 80), 0.01)
    difference[:, :6] = 0.5
    likely = explained(difference, views)
    assert (likely[:, 6:] > 0.9).all() and (likely[:, :6] < 0.1).all()


@pytest.mark.parametrize("kind", ["black", "white", "noise", "other", "nan"])
def test_a_bad_image_gives_a_finite_look(kind):
    start, generator = scene(ball(-1.0, 0.8, (0.6, 0.1, 0.1))), torch.Generator().manual_seed(1)
    target = {"black": torch.zeros(1, 3, 60, 80), "white": torch.ones(1, 3, 60, 80),
              "noise": torch.rand(1, 3, 60, 80, generator=generator),
              "nan": torch.full((1, 3, 60, 80), math.nan),
              "other": picture(generic_scene()).flip(2)}[kind]
    found = fit(start, target, 6)
    if kind in ("black", "white", "nan"):  # shows nothing
        assert not found.kept and found.scene == start and found.after == pytest.approx(
            found.before, nan_ok=True)
    text = json.dumps(found.scene.to_json(), allow_nan=False)
    assert scene_from_json(json.loads(text), start.camera) == found.scene


def test_an_empty_scene_and_an_object_behind_the_camera():
    behind = scene(ball(20.0, -18.0, (0.6, 0.1, 0.1)))
    target = picture(scene(ground=Material((0.2, 0.3, 0.5), roughness=1.0)))
    empty, hidden = fit_look([scene(), behind], target.expand(2, -1, -1, -1), ENV.world.assets, 12)
    assert empty.kept and hidden.kept and empty.after < 0.5 * empty.before
    assert hidden.scene.objects[0].position_world == (20.0, -18.0, 0.0)


# --- a neighborhood -------------------------------------------------------------------------------

def test_scenes_come_back_from_json():
    for name in ("clevr", "dining", "drive"):
        env = envs.find(name)
        one = env.sample(env, "target", "paper", np.random.default_rng(2))
        row = json.loads(json.dumps(one.to_json()))
        assert scene_from_json(row, one.camera).to_json() == one.to_json()


def test_a_scene_takes_the_palette_of_another_and_keeps_its_patterns():
    wood = Texture("wood", (0.1, 0.1, 0.1), 0.5, 0.7, 1)
    own = scene(ball(0.0, 0.0, (0.9, 0.9, 0.9), texture=wood), ball(1.0, 1.0, (0.5, 0.1, 0.1), label=0))
    red = scene(ball(2.0, 2.0, (0.8, 0.1, 0.1), roughness=0.3), exposure=1.7, lights=LAMPS[:1])
    made = recolored(own, [red], np.random.default_rng(0))
    assert (made.lights, made.exposure, made.ground) == (red.lights, 1.7, red.ground)
    first, second = made.objects
    assert first.material.color == (0.8, 0.1, 0.1) and first.material.texture.pattern == "wood"
    # the second color is as much darker than the first as it was: about a ninth
    assert first.material.texture.color[0] == pytest.approx(0.8 * 0.3)
    assert second == own.objects[1]  # the other image has no cube
    assert first.position_world == own.objects[0].position_world


def test_jitter_is_about_ten_percent():
    one = generic_scene()
    exposures = [jittered(one, np.random.default_rng(i), 0.1).ground.color[0] / 0.5 for i in range(200)]
    assert 0.06 < np.std(np.log(exposures)) < 0.14
    assert jittered(one, np.random.default_rng(3), 0.1) == jittered(one, np.random.default_rng(3), 0.1)


def lifted(count, **fields):
    box = [[150.0, 110.0, 190.0, 152.0]]
    graphs = [make_graph(f"{i}.png", 320, 240, [1], box) for i in range(count)]
    return LiftedScenes(ENV, graphs, [ENV.world.camera] * count, "paper", 0, 0, torch.device("cpu"),
                        **fields)


def test_a_mixed_look_is_half_fitted_and_each_layout_has_both():
    red = scene(ball(0.0, 0.0, (0.9, 0.0, 0.0)))
    source = lifted(4, fitted=[red, red, None, red], mixed=True)
    assert [source.takes_fit(i) for i in range(8)] == [
        True, False, False, False, False, True, False, True]
    whole = lifted(4, fitted=[red, red, None, red])
    assert [whole.takes_fit(i) for i in range(8)] == [True, True, False, True] * 2
    random = lifted(4).scenes(range(8))
    made = source.scenes(range(8))
    assert made[1].to_json() == random[1].to_json()
    assert made[0].objects[0].material != random[0].objects[0].material
    assert made[5].objects[0].position_world == random[5].objects[0].position_world
    assert made[5].objects[0].material.color[1] < 0.02  # in the red of another image
    assert source.scenes(range(5, 6))[0].to_json() == made[5].to_json()


# --- the command line -----------------------------------------------------------------------------

@pytest.fixture
def images(tmp_path):
    """Twenty labeled images of the target's look."""
    run(tmp_path, "synthesize.py", "--domain", "target", "--num", 36, "--seed", 4, "--out", "real")
    return tmp_path / "real/train"


def test_a_killed_fit_continues_to_the_same_result(images, tmp_path):
    paths = sorted((images / "images").glob("*.png"))[:18]
    whole = fit_looks(lifted(18), paths, 2, tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    (tmp_path / "cut.jsonl").write_bytes(lines[0] + lines[1][:50])
    again = fit_looks(lifted(18), paths, 2, tmp_path / "cut.jsonl")
    assert [one.after for one in again] == [one.after for one in whole]
    assert [one.scene.to_json() for one in again] == [one.scene.to_json() for one in whole]
    assert (tmp_path / "cut.jsonl").read_bytes() == b"".join(lines)


def test_fitted_looks_on_the_command_line(images, tmp_path, monkeypatch):
    graphs = images / "graphs.jsonl"
    printed = run(tmp_path, "synthesize.py", "--graphs", graphs, "--num", 6, "--fit", "both",
                  "--fit-steps", 6, "--refine", 2, "--out", "set")
    assert "difference of render and image" in printed
    info = json.loads((tmp_path / "set/dataset.json").read_text())
    assert (info["look"], info["fit_steps"], info["refine"]) == ("fitted", 6, 2)
    assert info["fit"]["photometric_after"] < info["fit"]["photometric_before"]
    assert info["fit"]["median"] > 0.5 and info["fit"]["dropped"] == 0
    rows = [json.loads(line) for line in (tmp_path / "set/fitted.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and set(rows[0]) == {"image", "before", "after", "kept"}
    assert not (tmp_path / "set/fitting.jsonl").exists()
    Image.new("RGB", (160, 120)).save(images / rows[0]["image"])
    sheets, draw = [], drawings.contact_sheet
    monkeypatch.setattr(drawings, "contact_sheet", lambda rows: sheets.append(rows) or draw(rows))
    printed = run(tmp_path, "synthesize.py", "--graphs", graphs, "--num", 2, "--look", "mixed",
                  "--fit-steps", 2, "--preview", "--out", "sheet")
    assert [(title, len(tiles)) for title, tiles in sheets[0]] == [
        (name, 2) for name in ("target", "random look", "fitted look", "data set")]
    assert "1 of 2 keep the random look" in printed and (tmp_path / "sheet.preview.png").exists()


@pytest.mark.parametrize("options, words", [
    (("--look", "fitted"), "--look is for lifted graphs"),
    (("--fit", "both"), "--fit is for lifted graphs"),
    (("--fit-steps", 9), "--fit-steps is for lifted graphs"),
    (("--graphs", "g.jsonl", "--fit", "pose", "--fit-steps", 9), "--fit-steps: the look stays random"),
    (("--graphs", "g.jsonl", "--fit", "pose", "--look", "fitted"), "--fit pose"),
    (("--graphs", "g.jsonl", "--fit", "look", "--look", "random"), "--fit look"),
    (("--graphs", ROOT / "docs/tutorial/graphs.jsonl", "--look", "fitted"), "docs/tutorial")])
def test_options_that_contradict_are_one_line(tmp_path, options, words):
    assert words in run(tmp_path, "synthesize.py", *options, "--out", "x", code=3)
