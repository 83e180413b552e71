"""`make bench`: how fast the quick preset trains and renders on this machine.

    training   one optimizer step of the whole network, compared with torchvision's Faster R-CNN of
               the same backbone, anchors and numbers of proposals and RoIs; in both precisions of
               the encoder; of the network from scratch; and one step with adaptation, with a
               shared forward pass and with the RPN head run for each loss
    rendering  images per second that `synthesize.py` writes to disk: CLEVR with the quick preset,
               the other environments at native size
    fit        seconds per image of the fit of the look to images, on all cores
    compare    seconds per image of render and compare, on all cores
"""
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from envs.clevr import ENV
from sim2sg_lib import adapt
from sim2sg_lib.net.backbone import quick_config
from sim2sg_lib.net.detector import ASPECT_RATIOS, MIN_PRE_NMS, ROI_SIZE
from sim2sg_lib.net.network import Outputs, SceneGraphNet
from sim2sg_lib.scene import SceneObject, relations
from sim2sg_lib.sim.chunks import cut_into_chunks, in_parallel
from sim2sg_lib.sim.compare import Shapes, render_and_compare
from sim2sg_lib.sim.look import fit_look, fit_size
from sim2sg_lib.sim.render import render_scenes
from sim2sg_lib.sim.sources import RandomScenes
from synthesize import LOOK_STEPS

BATCH, ROUNDS, WARMUP_ROUNDS = 4, 12, 2


def toy_batch(config):
    """Random images with four objects each, at positions of CLEVR layouts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, config.height, config.width, generator=generator)
    targets = []
    for _ in range(BATCH):
        corner = torch.rand(4, 2, generator=generator) * torch.tensor([120.0, 80.0])
        boxes = torch.cat([corner, corner + 10 + 25 * torch.rand(4, 2, generator=generator)], 1)
        position = torch.rand(4, 3, generator=generator) * 6
        objects = [SceneObject(0, "cube", tuple(p), (1.0, 1.0, 1.0), 0.0)
                   for p in position.tolist()]
        rows = relations(objects, ENV.world.camera, ENV.vocabulary.predicates, ENV.world.rules)
        targets.append({"boxes": boxes, "labels": torch.randint(1, 4, (4,), generator=generator),
                        "ignore_boxes": torch.zeros(0, 4), "relations": torch.from_numpy(rows)})
    return images, targets


def plain_faster_rcnn(config):
    """torchvision's own model around the same backbone."""
    levels = [str(i) for i in range(len(config.returned_layers))]
    sizes = tuple((size * config.enlarge,) for size in config.anchor_sizes)
    return FasterRCNN(
        SceneGraphNet(config).detector.backbone, min_size=config.height * config.enlarge,
        max_size=config.width * config.enlarge,
        rpn_anchor_generator=AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes)),
        rpn_head=RPNHead(config.fpn_channels, len(ASPECT_RATIOS)),
        rpn_pre_nms_top_n_train=max(config.proposals_train, MIN_PRE_NMS),
        rpn_post_nms_top_n_train=config.proposals_train,
        box_roi_pool=MultiScaleRoIAlign(levels, ROI_SIZE, 2),
        box_head=TwoMLPHead(config.fpn_channels * ROI_SIZE ** 2, config.head_width),
        box_predictor=FastRCNNPredictor(config.head_width, config.categories + 1),
        box_batch_size_per_image=config.rois_per_image)


def shared_losses(model, methods, images, targets, target_images):
    """Losses of a step of train.py, where the task and both methods share one forward pass."""
    source, target = model.forward_each(images, target_images)
    losses = model.losses(source, targets)
    for method in methods:
        losses |= method.losses(model, source, target, 0.5)[0]
    return losses


def repeated_losses(model, methods, images, targets, target_images):
    """The same losses without sharing.

    The features of both domains are computed in one batch, but the task, D_a and D_c each compute
    the rest themselves: the RPN head runs three times per source and twice per target image.
    """
    features = model.features(torch.cat([images, target_images]))

    def domains():
        return (Outputs(model, {name: level[part] for name, level in features.items()})
                for part in (slice(None, BATCH), slice(BATCH, None)))

    losses = model.losses(next(domains()), targets)
    for method in methods:
        losses |= method.losses(model, *domains(), 0.5)[0]
    return losses


def stepper(model, losses):
    """Returns a function that makes one training step and returns its duration in seconds."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-4, fused=True)

    def step():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        sum(losses().values()).backward()
        optimizer.step()
        return time.perf_counter() - start
    return step


def bench_training():
    size = ENV.presets["quick"].image_size
    numbers = len(ENV.vocabulary.categories), len(ENV.vocabulary.predicates), *size
    config = quick_config(*numbers)
    images, targets = toy_batch(config)
    plain, ours = plain_faster_rcnn(config).train(), SceneGraphNet(config).train()
    bf16, scratch = (SceneGraphNet(own).train()
                     for own in (config, quick_config(*numbers, imagenet=False)))
    bf16.detector.bf16 = True
    adapted = SceneGraphNet(config).train()
    knobs = adapt.choose_knobs("appearance,prediction", (), "quick")
    methods = adapt.make(knobs, config).values()
    batch = (adapted, methods, images, targets, images.flip(0))
    steps = {
        "plain Faster R-CNN": stepper(plain, lambda: plain(list(images), targets)),
        "whole network": stepper(ours, lambda: ours.losses(ours(images), targets)),
        "whole network, bf16": stepper(bf16, lambda: bf16.losses(bf16(images), targets)),
        "resnet18 from scratch": stepper(scratch, lambda: scratch.losses(scratch(images), targets)),
        "adapted, not shared": stepper(adapted, lambda: repeated_losses(*batch)),
        "adapted, shared": stepper(adapted, lambda: shared_losses(*batch))}
    seconds = {name: [] for name in steps}
    for round_ in range(WARMUP_ROUNDS + ROUNDS):
        for name, step in steps.items():
            elapsed = step()
            if round_ >= WARMUP_ROUNDS:
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"training step, {config.backbone} {config.width}x{config.height}, batch {BATCH}, "
          f"{torch.get_num_threads()} threads")
    for name, median in medians.items():
        ratio = median / medians["plain Faster R-CNN"]
        print(f"  {name:<26}{1000 * median:8.1f} ms   {ratio:5.2f} x")
    ratios = [a / b for a, b in zip(seconds["adapted, not shared"], seconds["adapted, shared"])]
    print("  a shared forward pass makes the adapted step "
          f"{statistics.median(ratios):.2f} x as fast")


def rendering_seconds(num, options):
    """Seconds of one call of synthesize.py, including the start of Python and torch."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, root / "synthesize.py", "--num", str(num),
                   "--out", f"{folder}/x"]
        start = time.perf_counter()
        subprocess.run([*command, *options], cwd=root, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def bench_rendering(num=500, few=2, many=14):
    print("synthesize.py, images written to disk, without the time of starting")
    start = statistics.median(rendering_seconds(1, []) for _ in range(3))
    for name, options in (("source", []), ("source, strong", ["--randomize", "strong"]),
                          ("target", ["--domain", "target"])):
        rate = num / (rendering_seconds(num, options) - start)
        print(f"  {'clevr, ' + name:<26}{rate:8.1f} images/s")
    print("synthesize.py --preset paper, at native size, likewise")
    for env, domain in (("dining", "source"), ("dining", "target"), ("drive", "source"),
                        ("drive", "target")):
        options = ["--preset", "paper", "--env", env, "--domain", domain]
        # at least three target images, one per split
        first, last = (few + 1, many + 1) if domain == "target" else (few, many)
        rate = (last - first) / (
            rendering_seconds(last, options) - rendering_seconds(first, options))
        print(f"  {env + ', ' + domain:<26}{rate:8.1f} images/s")


def bench_fit(num=48):
    """Scenes of CLEVR's source fitted to images of other scenes, in chunks side by side."""
    source = RandomScenes(ENV, "source", "paper", 0)
    width, height = fit_size(ENV.world.camera)
    device = torch.device("cpu")

    def work(chunk):
        scenes = source.scenes(chunk)
        images = render_scenes(ENV, scenes, [""] * len(scenes), (width, height), device).images
        target = torch.from_numpy(images).permute(0, 3, 1, 2).float().flip(1) / 255
        return fit_look(scenes, target, ENV.world.assets, LOOK_STEPS)

    chunks = cut_into_chunks(range(num), (width, height))
    start = time.perf_counter()
    fits = [fit for row in in_parallel(work, chunks, device) for fit in row]
    seconds = (time.perf_counter() - start) / num
    before, after = (statistics.mean(getattr(fit, name) for fit in fits) for name in ("before", "after"))
    print(f"fit of the look, clevr, {torch.get_num_threads()} threads: {seconds:.3f} s per image, "
          f"difference {before:.3f} -> {after:.3f}")


def bench_compare(num=24):
    """Exact graphs of CLEVR's target compared with their images, images side by side."""
    scenes = RandomScenes(ENV, "target", "paper", 0).scenes(range(num))
    device, shapes = torch.device("cpu"), Shapes.of(ENV)
    size = ENV.presets["quick"].image_size
    found = render_scenes(ENV, scenes, [""] * num, size, device)
    images = torch.from_numpy(found.images).permute(0, 3, 1, 2).float() / 255

    def work(chunk):
        return [render_and_compare(found.graphs[i], images[i], scenes[i].camera, ENV, shapes)
                for i in chunk]

    start = time.perf_counter()
    chunks = [range(i, i + 1) for i in range(num)]
    results = [row for made in in_parallel(work, chunks, device) for row in made]
    seconds = (time.perf_counter() - start) / num
    right = statistics.mean(graph.labels.tolist() == truth.labels.tolist()
                            for (graph, _), truth in zip(results, found.graphs))
    print(f"render and compare, clevr, {torch.get_num_threads()} threads: {seconds:.3f} s per image, "
          f"all categories right in {100 * right:.0f} % of the images")


if __name__ == "__main__":
    bench_training()
    bench_rendering()
    bench_fit()
    bench_compare()
