"""`make bench`: how fast the quick preset is on this machine, each figure beside a peer's from the same run.

    training   one optimiser step of the whole network against torchvision's own Faster R-CNN with the same backbone,
               anchors and numbers of proposals and RoIs, in turn, medians
    rendering  `synthesize.py`, images written to disk a second
    rasteriser six spheres of 1,280 faces at 320x240 against PyTorch3D where it can be imported, otherwise against the
               plain twin that visits every pixel for every face; growth with faces, pixels, batch and faces per pixel
"""
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from envs.clevr import ENV
from sim2sg_lib import raster_pytorch3d
from sim2sg_lib.align import Discriminators
from sim2sg_lib.camera import look_at, stack_cameras
from sim2sg_lib.detector import ASPECT_RATIOS, MIN_PRE_NMS, ROI_SIZE, quick_config
from sim2sg_lib.graph import InputError
from sim2sg_lib.meshes import build, sphere_mesh
from sim2sg_lib.raster import rasterize, silhouette
from sim2sg_lib.relations import SceneGraphNet
from sim2sg_lib.scene import Material, Scene, SceneObject, Sky, relations

BATCH, ROUNDS = 4, 15


def toy_batch(config):
    """Random images with four objects each, at positions of CLEVR layouts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, config.height, config.width, generator=generator)
    targets = []
    for _ in range(BATCH):
        corner = torch.rand(4, 2, generator=generator) * torch.tensor([120.0, 80.0])
        boxes = torch.cat([corner, corner + 10 + 25 * torch.rand(4, 2, generator=generator)], 1)
        position = torch.rand(4, 3, generator=generator) * 6
        rows = relations(position.numpy(), ENV.camera, ENV.vocabulary.predicates, 0.2)
        targets.append({"boxes": boxes, "labels": torch.randint(1, 4, (4,), generator=generator),
                        "relations": torch.from_numpy(rows)})
    return images, targets


def plain_faster_rcnn(config):
    """torchvision's own model around the same backbone."""
    levels = [str(i) for i in range(len(config.returned_layers))]
    anchors = AnchorGenerator(tuple((s,) for s in config.anchor_sizes), (ASPECT_RATIOS,) * len(config.anchor_sizes))
    return FasterRCNN(
        SceneGraphNet(config).detector.backbone, min_size=config.height, max_size=config.width,
        rpn_anchor_generator=anchors, rpn_head=RPNHead(config.fpn_channels, len(ASPECT_RATIOS)),
        rpn_pre_nms_top_n_train=max(config.proposals_train, MIN_PRE_NMS), rpn_post_nms_top_n_train=config.proposals_train,
        box_roi_pool=MultiScaleRoIAlign(levels, ROI_SIZE, 2),
        box_head=TwoMLPHead(config.fpn_channels * ROI_SIZE ** 2, config.head_width),
        box_predictor=FastRCNNPredictor(config.head_width, config.categories + 1),
        box_batch_size_per_image=config.rois_per_image)


def stepper(model, losses):
    """A function that makes one training step and returns its seconds."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)

    def step():
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        sum(losses().values()).backward()
        optimiser.step()
        return time.perf_counter() - start
    return step


def bench_training():
    config = quick_config(len(ENV.vocabulary.categories), len(ENV.vocabulary.predicates), *ENV.image_sizes["quick"])
    images, targets = toy_batch(config)
    ours, plain = SceneGraphNet(config).train(), plain_faster_rcnn(config).train()
    aligned = SceneGraphNet(config).train()
    judges = Discriminators(("appearance", "prediction"), config)

    def aligned_losses():
        features = aligned.features(torch.cat([images, images.flip(0)]))
        own = {k: v[:BATCH] for k, v in features.items()}
        return aligned.losses(own, targets) | judges(aligned, features, 0.2, 0.02)[0]

    steps = OrderedDict([
        ("plain Faster R-CNN", stepper(plain, lambda: plain(list(images), targets))),
        ("whole network", stepper(ours, lambda: ours.losses(ours.features(images), targets))),
        ("whole network, aligned", stepper(aligned, aligned_losses))])
    seconds = {name: [] for name in steps}
    for round_ in range(ROUNDS + 2):
        for name, step in steps.items():
            elapsed = step()
            if round_ >= 2:  # the first rounds warm up
                seconds[name].append(elapsed)
    base = statistics.median(seconds["plain Faster R-CNN"])
    print(f"training step, {config.backbone} {config.width}x{config.height}, batch {BATCH}, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        print(f"  {name:<26}{1000 * statistics.median(values):8.1f} ms   {statistics.median(values) / base:5.2f} x")


def bench_rendering(num=1500):  # the loop's own number
    root = Path(__file__).resolve().parents[1]
    print(f"synthesize.py --num {num}, written to disk, start of Python and torch included")
    for name, options in (("source", []), ("source, strong", ["--randomise", "strong"]), ("target", ["--domain", "target"])):
        rates = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                subprocess.run([sys.executable, root / "synthesize.py", "--num", str(num), "--out", f"{folder}/x", *options],
                               cwd=root, check=True, stdout=subprocess.DEVNULL)
                rates.append(num / (time.perf_counter() - start))
        print(f"  {name:<26}{statistics.median(rates):8.1f} images/s")


def spheres(scenes, count, subdivisions, width, height, device="cpu"):
    """Scenes of `count` spheres in a row, a mesh of 20 * 4 ** subdivisions faces each, and their cameras."""
    camera = look_at((0, -9, 5), (0, 0, 0), 1.1 * width, width, height)
    row = tuple(SceneObject(1, "sphere", (2.0 * (i - (count - 1) / 2), 0.0, 0.0), (1.6,) * 3, 0.0) for i in range(count))
    scene = Scene(row, camera, (), Sky((1.0,) * 3, (1.0,) * 3), Material())
    return build([scene] * scenes, {"sphere": sphere_mesh(subdivisions)}, device), stack_cameras([camera] * scenes, width, height,
                                                                                                device)


def slow_rasterize(meshes, cameras):
    """The plain twin: for every face, every pixel of the image is tested. numpy over faces, so not even the slowest."""
    px, depth = cameras.project(meshes.verts_world, meshes.vert_scene)
    corners, zs = px[meshes.faces].double().numpy(), depth[meshes.faces].double().numpy()
    x, y = np.meshgrid(np.arange(cameras.width) + 0.5, np.arange(cameras.height) + 0.5)
    zbuf, nearest = np.full(x.shape, np.inf), np.full(x.shape, -1)
    for f, ((a, b, c), z) in enumerate(zip(corners, zs)):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        u = ((b[0] - x) * (c[1] - y) - (b[1] - y) * (c[0] - x)) / area
        v = ((c[0] - x) * (a[1] - y) - (c[1] - y) * (a[0] - x)) / area
        inverse = u / z[0] + v / z[1] + (1 - u - v) / z[2]
        closer = (u >= 0) & (v >= 0) & (u + v <= 1) & (1 / np.where(inverse > 0, inverse, 1e-12) < zbuf)
        zbuf[closer], nearest[closer] = 1 / inverse[closer], f
    return nearest


def median_ms(work, rounds=5):
    """Median milliseconds of a call, after one to warm up."""
    work()
    values = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        values.append(1000 * (time.perf_counter() - start))
    return statistics.median(values)


def bench_rasteriser():
    meshes, cameras = spheres(1, 6, 3, 320, 240)
    moving = replace(meshes, verts_world=meshes.verts_world.clone().requires_grad_())
    sigma, blur = 1e-4, 1e-4 * math.log(1e4 - 1)
    ours = {"hard": lambda: rasterize(meshes, cameras), "soft silhouette, all faces": lambda: silhouette(meshes, cameras, sigma),
            "the same with backward": lambda: silhouette(moving, cameras, sigma).sum().backward(),
            "soft, 10 faces a pixel": lambda: rasterize(meshes, cameras, blur, 10)}
    try:
        peer = {"hard": lambda: raster_pytorch3d.rasterize(meshes, cameras),
                "soft, 10 faces a pixel": lambda: raster_pytorch3d.rasterize(meshes, cameras, blur, 10)}
        peer_ms = {name: median_ms(work, 1) for name, work in peer.items()}
        peer_name = "PyTorch3D"
    except InputError:
        peer_ms, peer_name = {"hard": median_ms(lambda: slow_rasterize(meshes, cameras), 1)}, "plain twin"
    print(f"rasteriser, 6 x 1,280 faces, 320x240, beside {peer_name}")
    for name, work in ours.items():
        other = peer_ms.get(name, peer_ms.get("soft, 10 faces a pixel", peer_ms["hard"]))
        elapsed = median_ms(work)
        print(f"  {name:<28}{elapsed:8.1f} ms   {other / elapsed:7.1f} x faster")
    print("growth                            hard ms   soft ms, 10 faces a pixel")
    for title, (scenes, count, subdivisions, width, height) in {
            "480 faces": (1, 6, 1, 320, 240), "7,680 faces": (1, 6, 3, 320, 240), "30,720 faces": (1, 6, 4, 320, 240),
            "160x120": (1, 6, 3, 160, 120), "1242x375": (1, 6, 3, 1242, 375), "1242x375, 122,880 faces": (1, 6, 5, 1242, 375),
            "batch of 8": (8, 6, 3, 320, 240)}.items():
        meshes, cameras = spheres(scenes, count, subdivisions, width, height)
        print(f"  {title:<28}{median_ms(lambda: rasterize(meshes, cameras), 3):11.1f}"
              f"{median_ms(lambda: rasterize(meshes, cameras, blur, 10), 3):11.1f}")


if __name__ == "__main__":
    bench_training()
    bench_rendering()
    bench_rasteriser()
