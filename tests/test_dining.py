"""Dining-Sim: relations by hand, domains against the paper's appendix, lifting, --assets."""
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import synthesize
from conftest import run
from envs import clevr, drive
from envs.dining import ASSETS, CHAIR, DOMAINS, ENV, FINISH, KIND_NAMES, KINDS, LAPTOP, TABLE
from sim2sg_lib.net import predict
from sim2sg_lib import checkpoint
from sim2sg_lib.io.mesh_files import replace_assets
from sim2sg_lib.camera import look_at
from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import make_graph
from sim2sg_lib.sim.lift import lift, projected_box
from sim2sg_lib.sim.meshes import pose_mesh
from sim2sg_lib.sim.render import render_scenes
from sim2sg_lib.scene import RelationRules, SceneObject, relations, to_footprint

ON = ENV.vocabulary.predicates.index("on")


def layouts(domain, count=40, env=ENV):
    return [env.world.sample_layout(env, domain, np.random.default_rng([5, i]))
            for i in range(count)]


def scenes(domain, count=20, randomize="paper"):
    rows = []
    for i in range(count):
        rng = np.random.default_rng([6, i])
        rows.append(ENV.world.sample_appearance(*ENV.world.sample_layout(ENV, domain, rng), domain,
                                                randomize, rng))
    return rows


def item(label, position, size_m=(0.4, 0.4, 0.4), yaw_rad=0.0):
    return SceneObject(label, "x", position, size_m, yaw_rad)


def named_relations(*objects):
    """Relations seen from -y: right is +x, behind is +y."""
    camera = look_at((0, -5, 1.6), (0, 0, 0.4), 800, 1024, 768)
    rows = relations(objects, camera, ENV.vocabulary.predicates, ENV.world.rules)
    return {(int(s), ENV.vocabulary.predicates[p], int(o)) for s, p, o in rows}


def render(rows, width=192, height=144):
    """(B, 3, H, W) images in [0, 1]."""
    images = render_scenes(ENV, rows, ["x.png"] * len(rows), (width, height), "cpu").images
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def graphs_of(rows):
    return render_scenes(ENV, rows, ["x.png"] * len(rows), (192, 144), "cpu").graphs


# --- labels ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("position, expected", [
    ((1.6, 0.0, 0.75), True),     # 0.6 along x: the turned table top extends 0.7 to each side
    ((1.0, 0.6, 0.75), False),    # 0.6 along y: the table top extends 0.4 to each side
    ((1.0, 0.39, 0.75), True),
    ((1.0, 0.0, 0.775), True),    # 25 mm above the top
    ((1.0, 0.0, 0.79), False),    # 40 mm
    ((1.0, 0.0, 0.715), False),   # 35 mm too low
    ((1.0, 0.0, 0.73), True),
    ((1.0, 0.0, 0.0), False)])    # under the table
def test_on_by_hand(position, expected):
    table = item(TABLE, (1.0, 0.0, 0.0), (0.8, 1.4, 0.75), math.pi / 2)
    assert ((1, "on", 0) in named_relations(table, item(LAPTOP, position))) == expected
    # only a laptop can be on something, and nothing can be on a laptop
    assert not any(p == "on" for _, p, _ in named_relations(table, item(CHAIR, position)))
    assert not any(p == "on" and s == 0
                   for s, p, _ in named_relations(table, item(LAPTOP, position)))


def test_spatial_relations_need_a_table():
    table, chair, other = (item(TABLE, (0, 0, 0)), item(CHAIR, (1.0, 0.05, 0)),
                           item(CHAIR, (-1.0, -1.0, 0)))
    # 0.05 m behind is less than the margin
    assert named_relations(table, chair, other) == {
        (1, "right", 0), (0, "left", 1), (2, "left", 0), (0, "right", 2), (2, "front", 0),
        (0, "behind", 2)}
    assert named_relations(chair, other) == set()


def test_a_full_target_scene_has_fewer_relations_than_recall_at_50_takes():
    counts = [len(relations(objects, camera, ENV.vocabulary.predicates, ENV.world.rules))
              for objects, camera in layouts("target")]
    # at most: 6 objects x 2 predicates x 2 directions + 2 of `on`
    assert max(counts) <= 26 and min(counts) >= 12


# --- content --------------------------------------------------------------------------------------

def overlap(a, b):
    """Whether any point of a fine grid in the box of a lies in the box of b."""
    if (min(o.position_world[2] + o.size_m[2] for o in (a, b))
            <= max(a.position_world[2], b.position_world[2]) + 1e-9):
        return False
    fraction = np.linspace(-0.5, 0.5, 21)
    for x in fraction * a.size_m[0]:
        for y in fraction * a.size_m[1]:
            cos, sin = math.cos(a.yaw_rad), math.sin(a.yaw_rad)
            point = (a.position_world[0] + cos * x - sin * y,
                     a.position_world[1] + sin * x + cos * y)
            if all(abs(v) < side / 2 for v, side in zip(to_footprint(b, point), b.size_m)):
                return True
    return False


@pytest.mark.parametrize("domain", DOMAINS)
def test_nothing_collides_and_all_is_in_view(domain):
    for objects, camera in layouts(domain, 15):
        assert not any(overlap(a, b) for a in objects for b in objects if a is not b)
        for o in objects:
            verts = pose_mesh(ENV.world.assets[o.asset], o.position_world, o.size_m,
                              o.yaw_rad).verts
            points_px, depth_m = camera.project(verts)
            assert ((depth_m > 0.5).all() and (points_px > 0).all()
                    and (points_px < [1024, 768]).all()), o.asset
    assert overlap(item(CHAIR, (0, 0, 0)), item(CHAIR, (0.3, 0, 0)))
    assert not overlap(item(CHAIR, (0, 0, 0)), item(CHAIR, (0.5, 0, 0)))


@pytest.mark.parametrize("domain", ["target", "target-content"])
def test_chairs_face_the_table_and_laptops_lie_on_it(domain):
    for objects, _ in layouts(domain, 25):
        assert [o.label for o in objects] == [TABLE] + [CHAIR] * 4 + [LAPTOP] * 2
        table, chairs, laptops = objects[0], objects[1:5], objects[5:]
        sides = set()
        for chair in chairs:
            x, y = to_footprint(table, chair.position_world)
            beyond = np.abs([x, y]) > np.array(table.size_m[:2]) / 2
            assert beyond.sum() == 1  # at a side, not at a corner
            sides.add((int(beyond[1]), bool((x, y)[int(beyond[1])] > 0)))
            towards = np.subtract(table.position_world, chair.position_world)[:2]
            ahead = [math.cos(chair.yaw_rad), math.sin(chair.yaw_rad)]
            assert ahead @ towards / np.linalg.norm(towards) > 0.999
        assert len(sides) == 4 and len({chair.asset for chair in chairs}) == 1
        for laptop in laptops:
            assert laptop.position_world[2] == table.size_m[2]
            corners = pose_mesh(ENV.world.assets[laptop.asset], laptop.position_world,
                                laptop.size_m, laptop.yaw_rad).verts[:, :2]
            inside = (np.abs([to_footprint(table, corner) for corner in corners])
                      <= np.array(table.size_m[:2]) / 2)
            assert inside.all()
    turns = [o.yaw_rad for objects, _ in layouts(domain, 25) for o in objects[5:]]
    assert np.abs(np.mean(np.exp(1j * np.array(turns)))) < 0.4  # laptops are turned by any angle


@pytest.mark.parametrize("domain", ["source", "target-appearance"])
def test_single_pieces_are_anywhere_and_the_laptop_is_on_the_table_half_of_the_time(domain):
    drawn = [objects for objects, _ in layouts(domain, 120)]
    assert all([o.label for o in objects] == [CHAIR, TABLE, LAPTOP] for objects in drawn)
    heights = [(objects[2].position_world[2], objects[1].size_m[2]) for objects in drawn]
    assert all(z in (0.0, top) for z, top in heights)
    assert 0.38 < np.mean([z > 0 for z, _ in heights]) < 0.62
    for label in (CHAIR, TABLE):
        spread = np.array([objects[label].position_world[:2] for objects in drawn])
        assert (spread.std(0) > 0.35).all()
        assert np.abs(np.mean([np.exp(1j * objects[label].yaw_rad) for objects in drawn])) < 0.3


# --- appearance -----------------------------------------------------------------------------------

def test_ablation_pairs_take_one_half_of_the_target():
    kinds = {domain: {o.asset.split("_")[0] for s in scenes(domain) for o in s.objects}
             for domain in DOMAINS}
    assert kinds["source"] == kinds["target-content"] == {"cantilever", "workshop", "pc"}
    assert kinds["target"] == kinds["target-appearance"] == {"windsor", "kitchen", "macbook"}
    for domain, count, lamps in (("source", 3, 3), ("target-content", 7, 3),
                                 ("target-appearance", 3, 6), ("target", 7, 6)):
        for scene in scenes(domain, 5):
            assert (len(scene.objects) == count and len(scene.lights) == lamps
                    and scene.room is not None)
            textured = any(m.texture for o in scene.objects
                           for m in (o.material, *o.part_materials))
            assert textured == (lamps == 6)


def test_the_source_varies_in_color_alone_and_strong_in_everything_no_graph_holds():
    plain, strong = scenes("source"), scenes("source", randomize="strong")

    def skins(rows):
        return [m for s in rows for o in s.objects for m in (o.material, *o.part_materials)]

    assert {(m.metallic, m.roughness, m.texture) for m in skins(plain)} == {(0.0, 0.6, None)}
    assert len({m.color for m in skins(plain)}) > 10
    assert len({m.roughness for m in skins(strong)}) > 100
    for value in (lambda s: s.exposure, lambda s: s.ground, lambda s: s.room.wall, lambda s: s.sky,
                  lambda s: s.lights[0].intensity):
        assert (len({value(s) for s in plain}) == 1
                and len({value(s) for s in strong}) == len(strong))
    assert {len(s.strips) for s in plain} == {0} and {len(s.strips) for s in strong} == {0, 1, 2}
    for a, b in zip(plain, strong):
        assert ([(o.asset, o.position_world) for o in a.objects]
                == [(o.asset, o.position_world) for o in b.objects])
    assert len({s.exposure for s in scenes("target", 5, "strong")}) == 1


@pytest.mark.parametrize("look", KINDS)
@pytest.mark.parametrize("label", [CHAIR, TABLE, LAPTOP])
def test_assets_fill_their_boxes_and_wind_outward(look, label):
    names = KIND_NAMES[look][label]
    assert len(names) >= 4 and len({ASSETS[name][1] for name in names}) == len(names)
    for name in names:
        mesh, size_m = ASSETS[name]
        assert 100 <= len(mesh.faces) <= 650
        np.testing.assert_allclose(mesh.verts.min(0), [-0.5, -0.5, 0], atol=1e-9)
        np.testing.assert_allclose(mesh.verts.max(0), [0.5, 0.5, 1], atol=1e-9)
        assert ((np.array(size_m) > 0.2) & (np.array(size_m) < 1.6)).all()
        a, b, c = (mesh.verts[mesh.faces[:, k]] for k in range(3))
        assert 0.01 < (np.cross(a, b) * c).sum() / 6 < 1
        assert ((np.cross(b - a, c - a)
                 * mesh.normals[mesh.faces].mean(1)).sum(1) > 0).all(), "a face winds inward"
        assert 2 <= len(set(mesh.face_part)) and mesh.face_part.max() < len(FINISH[look][label])


def test_tables_are_flat_on_top_and_chairs_have_their_backs_behind():
    for name in KIND_NAMES["source"][TABLE] + KIND_NAMES["target"][TABLE]:
        mesh, _ = ASSETS[name]
        highest = mesh.verts[mesh.faces][(mesh.verts[mesh.faces][..., 2] > 1 - 1e-9).all(1)]
        area = np.linalg.norm(np.cross(highest[:, 1] - highest[:, 0],
                                       highest[:, 2] - highest[:, 0]), axis=1).sum() / 2
        assert area > 0.9, name  # of the footprint, which is 1
    for name in KIND_NAMES["source"][CHAIR] + KIND_NAMES["target"][CHAIR]:
        mesh, _ = ASSETS[name]
        assert mesh.verts[mesh.verts[:, 2] > 0.9, 0].mean() < -0.1, name


# --- pictures -------------------------------------------------------------------------------------

@pytest.mark.parametrize("domain, least_visible, least_found",
                         [("source", 0.95, 0.9), ("target", 0.75, 0.93)])
def test_most_of_every_object_is_seen(domain, least_visible, least_found):
    rows = scenes(domain, 12)
    graphs = graphs_of(rows)
    found = sum(map(len, graphs)) / sum(len(s.objects) for s in rows)
    assert (found >= least_found
            and np.median(np.concatenate([g.visible for g in graphs])) >= least_visible)
    assert all((g.truncated == 0).all() for g in graphs)
    images = render(rows[:3])
    # neither too dark nor overexposed
    assert 0.15 < float(images.mean()) < 0.75 and float((images > 0.97).float().mean()) < 0.02


def test_a_scene_renders_to_the_same_bytes_alone_and_in_any_batch():
    rows = [*scenes("source", 1, "strong"), *scenes("target", 1), *scenes("target-content", 1)]
    rows = [replace(scene, shadow_texels=160) for scene in (*rows, replace(rows[0], objects=()))]

    def image(batch):
        return (render(batch, 96, 72) * 255).round().byte()

    together = image(rows)
    for i, scene in enumerate(rows):
        assert torch.equal(image([scene])[0], together[i])
    assert torch.equal(image(rows[::-1]), together.flip(0))


# --- lifting --------------------------------------------------------------------------------------

def lifted_laptops(rows, graphs, with_on):
    """Position errors (m) and box IoUs of lifted laptops that are on a table in the true scene."""
    errors, ious = [], []
    for i, (scene, graph) in enumerate(zip(rows, graphs)):
        if len(graph) < len(scene.objects):
            continue
        if not with_on:
            spatial = graph.relations[:, 1] != ON
            graph = replace(graph, relations=graph.relations[spatial],
                            relation_scores=graph.relation_scores[spatial])
        objects, kept = lift(graph, scene.camera, ENV, np.random.default_rng(i))
        for found, box in zip(objects, kept.boxes_px):
            true = scene.objects[int(np.abs(graph.boxes_px - box).sum(1).argmin())]
            if true.label != LAPTOP or true.position_world[2] == 0:
                continue
            errors.append(math.dist(found.position_world[:2], true.position_world[:2]))
            verts = pose_mesh(ENV.world.assets[found.asset], found.position_world, found.size_m,
                              found.yaw_rad).verts
            seen = projected_box(verts, scene.camera.resized(graph.width, graph.height))
            both = (np.minimum(seen[2:], box[2:]) - np.maximum(seen[:2], box[:2])).clip(0).prod()
            ious.append(both / ((seen[2:] - seen[:2]).prod() + (box[2:] - box[:2]).prod() - both))
    return np.array(errors), np.array(ious)


def test_laptops_are_lifted_onto_their_tables():
    rows = scenes("target", 16)
    graphs, count = graphs_of(rows), 0
    for i, (scene, graph) in enumerate(zip(rows, graphs)):
        objects, kept = lift(graph, scene.camera, ENV, np.random.default_rng(i))
        wanted = {tuple(row) for row in kept.relations.tolist() if row[1] == ON}
        again = relations(objects, scene.camera, ENV.vocabulary.predicates, ENV.world.rules)
        assert {tuple(row) for row in again.tolist() if row[1] == ON} == wanted
        for s, _, o in wanted:
            assert objects[s].position_world[2] == objects[o].size_m[2] > 0.6
        count += len(wanted)
    assert count >= 25
    (with_on, fit), (without, _) = (lifted_laptops(rows, graphs, True),
                                    lifted_laptops(rows, graphs, False))
    print(f"{len(with_on)} laptops: median error {np.median(with_on):.3f} m, "
          f"without `on` {np.median(without):.3f} m; median IoU {np.median(fit):.3f}")
    assert (len(with_on) > 20 and np.median(with_on) < 0.2 < 1.0 < np.median(without)
            and np.median(fit) > 0.75)


def test_lifted_objects_stay_within_the_walls():
    far = [item(CHAIR, (0.0, 20.0, 0.0)), item(LAPTOP, (-9.0, 0.0, 0.0)),
           item(TABLE, (0.0, 0.0, 0.0))]
    placed = ENV.world.snap_to_context(far, np.zeros((3, 4)), ENV.world.camera,
                                       np.random.default_rng(0))
    room = scenes("source", 1)[0].room
    for o in placed:
        position = np.array(o.position_world[:2])
        assert (position - 0.2 >= room.low_m).all() and (position + 0.2 <= room.high_m).all()
    assert placed[2] == far[2]


def test_laptops_are_put_back_on_a_table_that_grew():
    table = item(TABLE, (0.5, 0.0, 0.0), (0.8, 1.4, 0.8), math.pi / 2)
    over, beyond = item(LAPTOP, (1.0, 0.2, 0.75)), item(LAPTOP, (0.5, 0.9, 0.75))
    objects = [over, beyond, table, item(LAPTOP, (-1.0, 0, 0))]
    placed = ENV.world.snap_to_context(objects, np.zeros((4, 4)), ENV.world.camera,
                                       np.random.default_rng(0))
    # above the table top: only its height changes
    np.testing.assert_allclose(placed[0].position_world, (1.0, 0.2, 0.8), atol=1e-9)
    # beyond the edge: moved to 0.8 of the half width
    np.testing.assert_allclose(placed[1].position_world, (0.5, 0.32, 0.8), atol=1e-9)
    assert placed[3].position_world == (-1.0, 0, 0)


def test_adaptive_thresholds_from_the_command_line(tmp_path, monkeypatch):
    """The threshold of 0.2 is a fraction of a category's best scores, if there are any.

    In two images, the best chairs score 0.2 and 0.4, whose 0.9 quantile is 0.38; there is one table
    of 0.5 and no laptop.
    """
    (tmp_path / "target").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / "target" / name)
    found = {"a.png": [(CHAIR, 0.2)], "b.png": [(CHAIR, 0.4), (CHAIR, 0.07), (TABLE, 0.5)]}

    def fake_predict(model, images, env, object_threshold, predicate_threshold, kept):
        rows = [(name, [row for row in found[name] if row[1] >= object_threshold])
                for name in images.names]
        return [make_graph(name, 64, 48, [label for label, _ in row],
                           [[10 * i, 18, 10 * i + 8, 32] for i in range(len(row))], [],
                           scores=[score for _, score in row]) for name, row in rows]

    monkeypatch.setattr(checkpoint, "load", lambda path, env, device: None)
    monkeypatch.setattr(predict, "predict_folder", fake_predict)
    write(tmp_path / "model.pt", "")
    arguments = ["--env", "dining", "--checkpoint", tmp_path / "model.pt", "--target",
                 tmp_path / "target", "--out", tmp_path / "out", "--device", "cpu", "--num", 2]
    result = CliRunner().invoke(synthesize.main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    info = json.loads((tmp_path / "out/dataset.json").read_text())
    assert info["threshold"] == 0.2 and info["thresholds"] == pytest.approx([0.076, 0.1, 0.2])
    kept = [json.loads(line)["objects"]
            for line in (tmp_path / "out/predicted.jsonl").read_text().splitlines()]
    # the chair of 0.2 is kept, the one of 0.07 is not
    assert [[o["category"] for o in row] for row in kept] == [["chair"], ["chair", "table"]]


# --- --assets -------------------------------------------------------------------------------------

# A spike with a base 2 wide (x) and 1 high (y) and its tip at z = -4; the faces wind outward.
OBJ = "v -1 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 -4\nf 1 2 3\nf 1 3 4\nf 2 4 3\nf 1 4 2\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def check_spike(mesh):
    np.testing.assert_allclose(mesh.verts.min(0), [-0.5, -0.5, 0], atol=1e-6)
    np.testing.assert_allclose(mesh.verts.max(0), [0.5, 0.5, 1], atol=1e-6)
    # the tip points forward (+x)
    np.testing.assert_allclose(mesh.verts[mesh.verts[:, 0] > 0.49], [[0.5, 0, 0]] * 3, atol=1e-6)
    a, b, c = (mesh.verts[mesh.faces[:, k]] for k in range(3))
    # volume of a pyramid on a triangle: 1/3 x 1/2 x 1
    assert (np.cross(a, b) * c).sum() / 6 == pytest.approx(1 / 6)
    assert ((np.cross(b - a, c - a) * mesh.normals[mesh.faces[:, 0]]).sum(1) > 0).all()


def test_files_replace_the_source_s_assets(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    write(tmp_path / "chair" / "03001627-a" / "models" / "model_normalized.obj", OBJ)
    write(tmp_path / "chair" / "inward.obj",
          OBJ[:OBJ.index("f")] + "f 3 2 1\nf 4 3 1\nf 3 4 2\nf 2 4 1\n")
    (tmp_path / "laptop").mkdir()
    points, faces = ([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 4]],
                     [[0, 1, 2], [0, 2, 3], [1, 3, 2], [0, 3, 1]])
    trimesh.Trimesh(points, faces).export(tmp_path / "laptop" / "spike.glb")
    env = replace_assets(ENV, tmp_path)
    assert env.world.category_assets[CHAIR] == ("chair/03001627-a/models/model_normalized.obj",
                                                "chair/inward.obj")
    assert (env.world.category_assets[TABLE] == ENV.world.category_assets[TABLE]
            and env.world.category_assets[LAPTOP] == ("laptop/spike.glb",))
    for name in env.world.category_assets[CHAIR] + env.world.category_assets[LAPTOP]:
        check_spike(env.world.assets[name])
    for label in (CHAIR, LAPTOP):
        longest = sorted(max(math.hypot(*size) for size in ENV.world.asset_sizes_m[name])
                         for name in ENV.world.category_assets[label])
        sizes = env.world.asset_sizes_m[env.world.category_assets[label][0]]
        assert max(math.hypot(*size) for size in sizes) == pytest.approx(longest[len(longest) // 2])
        np.testing.assert_allclose(np.array(sizes) / np.array(sizes)[:, 2:],
                                   [[4, 2, 1]] * len(sizes))
    for domain in ("source", "target-content"):
        drawn = {o.asset for objects, _ in layouts(domain, 8, env) for o in objects}
        assert (drawn <= {name for row in env.world.category_assets for name in row}
                and "laptop/spike.glb" in drawn)
    assert {o.asset.split("_")[0] for objects, _ in layouts("target", 3, env)
            for o in objects} == set(KINDS["target"])


def test_files_replace_clevr_s_assets_too(tmp_path):
    pytest.importorskip("trimesh")
    write(tmp_path / "cube" / "spike.obj", OBJ)
    env = replace_assets(clevr.ENV, tmp_path)
    drawn = [o for objects, _ in layouts("source", 20, env) for o in objects]
    assert {o.asset for o in drawn} == {"cube/spike.obj", "sphere", "cylinder"}
    lengths = {round(math.hypot(*o.size_m), 4) for o in drawn if o.label == 0}
    assert lengths == {0.8573, 1.2247, 1.7146}  # the cubes' diagonals: 2 r sqrt(3 / 2)


def test_a_saloon_from_a_file_is_as_large_as_the_simulator_s(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    (tmp_path / "car").mkdir()
    trimesh.creation.box((1.75, 1.45, 4.4)).export(tmp_path / "car" / "saloon.glb")
    env = replace_assets(drive.ENV, tmp_path)
    np.testing.assert_allclose(env.world.asset_sizes_m["car/saloon.glb"],
                               drive.ENV.world.asset_sizes_m["source saloon"])


def test_assets_from_the_command_line(tmp_path):
    pytest.importorskip("trimesh")
    write(tmp_path / "assets" / "chair" / "spike.obj", OBJ)
    run(tmp_path, "synthesize.py", "--env", "dining", "--assets", "assets", "--num", 2, "--out",
        "x")
    rows = [json.loads(line)["objects"]
            for line in (tmp_path / "x/scenes.jsonl").read_text().splitlines()]
    assert [row[0]["asset"] for row in rows] == ["chair/spike.obj"] * 2
    assert json.loads((tmp_path / "x/dataset.json").read_text())["assets"] == str(
        tmp_path / "assets")


def test_models_of_too_many_faces_are_left_out(tmp_path, capsys):
    pytest.importorskip("trimesh")
    strip = "".join(f"v {i} 0 0\nv {i} 1 {i % 2}\n" for i in range(10_002)) + "".join(
        f"f {i} {i + 1} {i + 2}\n" for i in range(1, 20_002))
    write(tmp_path / "chair" / "huge.obj", strip)
    with pytest.raises(InputError,
                       match="chair: every model has more than 20000 faces, expected one of fewer"):
        replace_assets(ENV, tmp_path)
    write(tmp_path / "chair" / "spike.obj", OBJ)
    assert replace_assets(ENV, tmp_path).world.category_assets[CHAIR] == ("chair/spike.obj",)
    words = f"{tmp_path / 'chair'}: left out 1 of 2 models, of more than 20000 faces\n"
    assert capsys.readouterr().out == words


def test_faulty_asset_files_are_named_in_one_line(tmp_path):
    pytest.importorskip("trimesh")
    for text, expected in (("hello\n", "cannot be read|no faces"),
                           ("v 0 0 0\nv 1 0 0\n", "cannot be read|no faces")):
        path = write(tmp_path / "table" / "bad.obj", text)
        with pytest.raises(InputError, match=expected) as error:
            replace_assets(ENV, tmp_path)
        assert str(path) in error.value.message and "\n" not in error.value.message
    (tmp_path / "table" / "bad.obj").unlink()
    with pytest.raises(InputError,
                       match="no OBJ or GLB file in a folder named chair, table, laptop"):
        replace_assets(ENV, tmp_path)
    (tmp_path / "table" / "bad.glb").write_bytes(b"glTF nonsense")
    with pytest.raises(InputError, match="bad.glb: cannot be read"):
        replace_assets(ENV, tmp_path)


def test_allowed_predicates_are_what_the_rules_can_label():
    chair, table, laptop = range(3)
    possible = ENV.world.rules.allowed_predicates(3, ENV.vocabulary.predicates)
    for p, name in enumerate(ENV.vocabulary.predicates):
        pairs = {(int(s), int(o)) for s, o in zip(*np.nonzero(possible[p]))}
        beside_a_table = {(table, chair), (table, laptop), (table, table), (chair, table),
                          (laptop, table)}
        assert pairs == ({(laptop, table)} if name == "on" else beside_a_table), name
    assert RelationRules({}).allowed_predicates(2, ("left",)).all()
