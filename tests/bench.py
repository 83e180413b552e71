"""`make bench`: how fast the quick preset is on this machine, each figure beside a peer's from the same run, and rendering.

    training   one optimizer step of the whole network against torchvision's own Faster R-CNN with the same backbone,
               anchors and numbers of proposals and RoIs, in turn, medians
    rendering  `synthesize.py`, images written to disk a second: CLEVR's quick preset, the others at native size
"""
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from envs.clevr import ENV
from sim2sg_lib.adapt.sim2sg import Discriminators
from sim2sg_lib.net.backbone import quick_config
from sim2sg_lib.net.detector import ASPECT_RATIOS, MIN_PRE_NMS, ROI_SIZE
from sim2sg_lib.net.relations import SceneGraphNet
from sim2sg_lib.scene import SceneObject, relations

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
        things = [SceneObject(0, "cube", tuple(p), (1.0, 1.0, 1.0), 0.0) for p in position.tolist()]
        rows = relations(things, ENV.world.camera, ENV.vocabulary.predicates, ENV.world.rules)
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
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        sum(losses().values()).backward()
        optimizer.step()
        return time.perf_counter() - start
    return step


def bench_training():
    config = quick_config(len(ENV.vocabulary.categories), len(ENV.vocabulary.predicates), *ENV.presets["quick"].image_size)
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


def rendering_seconds(num, options):
    """Of one synthesize.py, start of Python and torch included."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, root / "synthesize.py", "--num", str(num), "--out", f"{folder}/x", *options],
                       cwd=root, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def bench_rendering(num=1500, few=4, many=24):  # num is the loop's own number
    print(f"synthesize.py --num {num}, written to disk, start of Python and torch included")
    for name, options in (("source", []), ("source, strong", ["--randomize", "strong"]), ("target", ["--domain", "target"])):
        rates = [num / rendering_seconds(num, options) for _ in range(3)]
        print(f"  {name:<26}{statistics.median(rates):8.1f} images/s")
    print(f"synthesize.py --preset paper --num {many}, at native size, less the time of --num {few}: start excluded")
    for env, domain in (("dining", "source"), ("dining", "target"), ("drive", "source"), ("drive", "target")):
        options = ["--preset", "paper", "--env", env, "--domain", domain]
        rates = [(many - few) / (rendering_seconds(many, options) - rendering_seconds(few, options)) for _ in range(3)]
        print(f"  {env + ', ' + domain:<26}{statistics.median(rates):8.1f} images/s")


if __name__ == "__main__":
    bench_training()
    bench_rendering()
