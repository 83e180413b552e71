"""The parameters of a scene's look as tensors, with bounds and priors, and back to a scene."""
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sim2sg_lib.scene import Material, Scene, Texture
from sim2sg_lib.sim.lighting import Lighting
from sim2sg_lib.sim.meshes import Meshes


@dataclass(frozen=True)
class Group:
    """One group of parameters: how it is bounded, how fast it moves, what pulls it to its start."""

    kind: str  # "logit": between low and high; "log": positive; "place": relative to its distance
    scene_of: str  # what its rows belong to: "material", "surface" or "scene"
    rate: float = 1.0  # factor on RATE
    prior: float = 0.0  # weight of the squared distance from the start, in units of the parameter
    low: float = 0.0
    high: float = 1.0


# surfaces: the materials of all objects, then ground, strips and walls of all scenes
GROUPS = {
    "color": Group("logit", "surface", prior=1e-4, low=0.005, high=0.98),
    "second": Group("logit", "surface", 0.5, 0.01, 0.005, 0.98),  # color of the texture
    "amount": Group("logit", "surface", 0.5, 0.01),  # of the texture
    "metallic": Group("logit", "material", prior=1e-3),
    "roughness": Group("logit", "material", prior=1e-3, low=0.05),
    "zenith": Group("log", "scene", 0.5, 0.01),
    "horizon": Group("log", "scene", 0.5, 0.01),
    "strength": Group("log", "scene", 0.5, 0.01),  # of each lamp
    "tint": Group("log", "scene", 0.2, 0.1),  # of each lamp, linear RGB
    "place": Group("place", "scene", 0.2, 0.1),  # of each lamp; of a sun, its direction
    "exposure": Group("log", "scene", 0.3, 0.02)}
PLAIN = 0.01  # amount up to which a surface without a texture stays without
METALLIC_PRIOR = 0.01  # most things are no metal


def bounded(group: Group, start: Tensor, offset: Tensor) -> Tensor:
    """The values of a group, `offset` from their start; 0 leaves them, except at the bounds."""
    if group.kind == "log":
        return start * offset.exp()
    if group.kind == "place":
        place = start + offset * start.norm(dim=-1, keepdim=True)
        lowest = 0.1 * start[..., 2:].clamp(min=0)  # lamps and suns do not set
        return torch.cat([place[..., :2], place[..., 2:].maximum(lowest)], -1)
    span = group.high - group.low
    fraction = ((start - group.low) / span).clamp(1e-3, 1 - 1e-3)
    return group.low + span * torch.sigmoid(fraction.logit() + offset)


def values_of(meshes: Meshes, light: Lighting) -> dict[str, Tensor]:
    """The parameters of a batch of scenes by group."""
    textures = meshes.texture, light.ground, light.paint
    return {"color": torch.cat([meshes.color, light.ground_color, light.paint_color]),
            "second": torch.cat([texture.color for texture in textures]),
            "amount": torch.cat([texture.amount for texture in textures]),
            "metallic": meshes.metallic, "roughness": meshes.roughness,
            "zenith": light.zenith, "horizon": light.horizon,
            "strength": torch.ones_like(light.intensity[..., 0]), "tint": light.intensity,
            "place": light.lamp_world, "exposure": light.exposure}


def with_values(meshes: Meshes, light: Lighting, values: dict[str, Tensor]) -> tuple[Meshes, Lighting]:
    """Meshes and light with other values of the parameters; gradients reach these."""
    counts = len(meshes.color), len(light.ground_color), len(light.paint_color)
    color, second, amount = (values[name].split(counts) for name in ("color", "second", "amount"))
    textures = [replace(texture, color=row, amount=weight) for texture, row, weight
                in zip((meshes.texture, light.ground, light.paint), second, amount)]
    meshes = replace(meshes, color=color[0], texture=textures[0], metallic=values["metallic"],
                     roughness=values["roughness"])
    light = replace(
        light, ground_color=color[1], ground=textures[1], paint_color=color[2], paint=textures[2],
        zenith=values["zenith"], horizon=values["horizon"], lamp_world=values["place"],
        intensity=values["strength"][..., None] * values["tint"], exposure=values["exposure"])
    return meshes, light


def with_scales(meshes: Meshes, light: Lighting, scale_m: Tensor) -> tuple[Meshes, Lighting]:
    """Meshes and light with other scales (S,) of their textures, meters per cell."""
    textures = meshes.texture, light.ground, light.paint
    scales = scale_m.split([len(texture.scale_m) for texture in textures])
    textures = [replace(texture, scale_m=row) for texture, row in zip(textures, scales)]
    return replace(meshes, texture=textures[0]), replace(light, ground=textures[1], paint=textures[2])


def scenes_of_rows(meshes: Meshes, light: Lighting) -> dict[str, Tensor]:
    """"material", "surface", "scene" -> the scene (N,) int64 of each row of such a group."""
    scene = torch.arange(meshes.scenes, device=meshes.color.device)
    counts = [1 + len(o.part_materials) for one in light.scenes for o in one.objects]
    counts = torch.tensor(counts, dtype=torch.int64, device=scene.device)
    material = meshes.object_scene.repeat_interleave(counts)
    painted = torch.tensor(light.first_paint, device=scene.device).diff()
    return {"material": material, "scene": scene,
            "surface": torch.cat([material, scene, scene.repeat_interleave(painted)])}


def prior(offsets: dict[str, Tensor], values: dict[str, Tensor], rows: dict[str, Tensor],
          scenes: int) -> Tensor:
    """(B,) cost of leaving the start, and of metal."""
    total = values["exposure"].new_zeros(scenes)
    for name, group in GROUPS.items():
        cost = group.prior * offsets[name].square()
        cost = cost + METALLIC_PRIOR * values[name] if name == "metallic" else cost
        total = total.index_add(0, rows[group.scene_of], cost.flatten(1).sum(1) if cost.dim() > 1 else cost)
    return total


def dressed(scenes: list[Scene], meshes: Meshes, values: dict[str, Tensor]) -> list[Scene]:
    """The scenes with the values of the parameters, as rounded numbers."""
    rows = {name: torch.round(value.double(), decimals=5).tolist() for name, value in values.items()}
    surfaces = list(zip(rows["color"], rows["second"], rows["amount"], rows["scale"]))
    finish = iter(zip(surfaces, rows["metallic"], rows["roughness"]))
    grounds = iter(surfaces[len(meshes.color):])
    ground = [next(grounds) for _ in scenes]
    painted = grounds

    def paint(material: Material, surface) -> Material:
        color, second, amount, scale_m = surface
        texture = material.texture
        if texture or amount > PLAIN:
            seed = int(1e5 * second[0])  # any number that differs from surface to surface
            texture = replace(texture or Texture("noise", (0.0,) * 3, seed=seed),
                              color=tuple(second), amount=amount, scale_m=scale_m)
        return replace(material, color=tuple(color), texture=texture)

    def finished(material: Material) -> Material:
        surface, metallic, roughness = next(finish)
        return replace(paint(material, surface), metallic=metallic, roughness=roughness)

    made = []
    for b, scene in enumerate(scenes):
        objects = tuple(replace(o, material=finished(o.material),
                                part_materials=tuple(map(finished, o.part_materials)))
                        for o in scene.objects)
        strips = tuple(replace(strip, material=paint(strip.material, next(painted)))
                       for strip in scene.strips)
        room = scene.room and replace(scene.room, wall=paint(scene.room.wall, next(painted)))
        lights = tuple(
            replace(lamp, position_world=tuple(place), intensity=tuple(strength * c for c in tint))
            for lamp, place, strength, tint in zip(
                scene.lights, rows["place"][b], rows["strength"][b], rows["tint"][b]))
        sky = replace(scene.sky, zenith=tuple(rows["zenith"][b]), horizon=tuple(rows["horizon"][b]))
        made.append(replace(scene, objects=objects, strips=strips, room=room, lights=lights, sky=sky,
                            ground=paint(scene.ground, ground[b]), exposure=rows["exposure"][b]))
    return made
