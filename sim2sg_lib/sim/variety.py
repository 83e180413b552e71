"""Looks around a fitted one: a neighborhood teaches more than a point."""
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sim2sg_lib.scene import Material, Scene, SceneObject


def jittered(scene: Scene, rng: np.random.Generator, spread: float) -> Scene:
    """The scene with each color, finish and lamp off by factors of this standard deviation."""
    def scaled(color, high=np.inf):
        factors = np.exp(rng.normal(0, spread) + rng.normal(0, spread / 3, 3))
        return tuple(np.minimum(np.multiply(color, factors), high).tolist())

    def vary(material: Material) -> Material:
        texture = material.texture and replace(material.texture, color=scaled(material.texture.color, 0.98))
        metallic, roughness = np.add((material.metallic, material.roughness), rng.normal(0, spread, 2))
        return Material(scaled(material.color, 0.98), float(np.clip(metallic, 0, 1)),
                        float(np.clip(roughness, 0.05, 1)), texture)

    lights = []
    for lamp in scene.lights:
        away_m = np.linalg.norm(lamp.position_world) * rng.normal(0, spread / 2, 3)
        place = np.add(lamp.position_world, away_m)
        place[2] = max(place[2], lamp.position_world[2] / 2)
        lights.append(replace(lamp, position_world=tuple(place.tolist()), intensity=scaled(lamp.intensity)))
    sky = replace(scene.sky, zenith=scaled(scene.sky.zenith), horizon=scaled(scene.sky.horizon))
    return replace(
        scene, lights=tuple(lights), sky=sky, ground=vary(scene.ground),
        objects=tuple(replace(o, material=vary(o.material), part_materials=tuple(map(vary, o.part_materials)))
                      for o in scene.objects),
        strips=tuple(replace(strip, material=vary(strip.material)) for strip in scene.strips),
        room=scene.room and replace(scene.room, wall=vary(scene.room.wall)),
        exposure=float(scene.exposure * np.exp(rng.normal(0, spread / 2))))


def recolored(scene: Scene, donors: Sequence[Scene], rng: np.random.Generator) -> Scene:
    """The scene in the light and palette of the first donor; patterns stay.

    Objects take the materials of one of the same category, part by part, of the first donor that
    has any; strips take those of the same number.
    """
    donor = donors[0]

    def paint(o: SceneObject) -> SceneObject:
        for other in donors:
            alike = [item for item in other.objects if item.label == o.label]
            if alike:
                chosen = alike[rng.integers(len(alike))]
                parts = map(repainted, o.part_materials, chosen.part_materials)
                rest = o.part_materials[len(chosen.part_materials):]
                return replace(o, material=repainted(o.material, chosen.material),
                               part_materials=(*parts, *rest))
        return o

    strips = scene.strips
    if donor.strips:
        last = len(donor.strips) - 1
        strips = tuple(replace(strip, material=repainted(strip.material, donor.strips[min(i, last)].material))
                       for i, strip in enumerate(strips))
    room = scene.room
    if room and donor.room:
        room = replace(room, wall=repainted(room.wall, donor.room.wall))
    sky = replace(scene.sky, zenith=donor.sky.zenith, horizon=donor.sky.horizon)
    return replace(scene, objects=tuple(map(paint, scene.objects)), strips=strips, room=room, sky=sky,
                   ground=repainted(scene.ground, donor.ground), lights=donor.lights,
                   exposure=donor.exposure)


def repainted(material: Material, other: Material) -> Material:
    """The material with the colors and finish of another one, in its own pattern if it has one."""
    if material.texture is None:
        return other
    second = other.texture.color if other.texture else contrasting(material, other.color)
    amount = (other.texture or material.texture).amount
    return replace(other, texture=replace(material.texture, color=second, amount=amount))


def contrasting(material: Material, color: tuple) -> tuple[float, float, float]:
    """The second color that has to `color` the ratio that a textured material has."""
    ratio = np.divide(np.add(material.texture.color, 0.01), np.add(material.color, 0.01))
    return tuple(np.clip(np.multiply(color, ratio.clip(0.3, 3.0)), 0.0, 0.98).tolist())
