"""The domain probe: whether an encoder's features tell synthetic from real, measured afterwards.

That the discriminator of a training is fooled proves little: it may just not have kept up. A probe is
a fresh discriminator of frozen features, fitted to half of the images and tested on the others. It
needs images of the target, but none of its labels.
"""
from pathlib import Path

import torch
from torch import Tensor, nn

from sim2sg_lib.adapt.sim2sg import aligned_levels, domain_loss
from sim2sg_lib.cli import InputError, log_info
from sim2sg_lib.data_loading import UnlabeledImages
from sim2sg_lib.env import Env
from sim2sg_lib.io.reading import resolve_recorded
from sim2sg_lib.net.network import SceneGraphNet

IMAGES = 100  # of each domain
LOCATIONS = 16  # per image and pyramid level
BATCH = 16
WIDTH, STEPS, RATE, DECAY = 64, 150, 5e-3, 1e-2  # of the perceptron and its optimizer, AdamW


def domain_probe(model: SceneGraphNet, source: Tensor, target: Tensor, seed: int = 0) -> float:
    """Balanced accuracy on the held-out images: 0.5 if the domains cannot be told apart, 1 if always.

    source, target: (B, 3, H, W) in [0, 1], at least 2 images each.
    """
    generator = torch.Generator().manual_seed(seed)
    fitted, tested = [], []  # of source and target: (n, channels)
    for images in (source, target):
        features = sampled_features(model, images, generator)  # (B, locations, channels)
        features = features[torch.randperm(len(images), generator=generator)]
        half = len(images) // 2
        fitted.append(features[:half].flatten(0, 1))
        tested.append(features[half:].flatten(0, 1))
    std, mean = torch.std_mean(torch.cat(fitted), 0)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = nn.Sequential(nn.Linear(len(mean), WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        optimizer = torch.optim.AdamW(probe.parameters(), RATE, weight_decay=DECAY)

        def result(domains: list[Tensor]) -> tuple[Tensor, float]:
            return domain_loss(*([probe((own - mean) / (std + 1e-6))[:, 0]] for own in domains))

        for _ in range(STEPS):
            optimizer.zero_grad()
            result(fitted)[0].backward()
            optimizer.step()
        accuracy = result(tested)[1]
    return max(0.5, accuracy)


@torch.no_grad()
def sampled_features(model: SceneGraphNet, images: Tensor, generator: torch.Generator) -> Tensor:
    """What D_a sees, at locations drawn by their objectness: (B, locations, channels), on the CPU."""
    device, found = next(model.parameters()).device, []
    for batch in images.split(BATCH):
        outputs, drawn = model(batch.to(device)), []
        for name in aligned_levels(outputs.features):
            weights = outputs.objectness[name].cpu() + 1e-6  # (B, h * w)
            places = torch.multinomial(weights, LOCATIONS, replacement=True, generator=generator)
            level = outputs.features[name].cpu().flatten(2).transpose(1, 2)  # (B, h * w, channels)
            drawn.append(level.gather(1, places[:, :, None].expand(-1, -1, level.shape[2])))
        found.append(torch.cat(drawn, 1))
    return torch.cat(found)


def probe_of_run(model: SceneGraphNet, options: dict, checkpoint: Path, env: Env, test_data: Path
                 ) -> float | None:
    """The probe between the newest data set that a run was trained on and its target.

    options: of the training. Without a target among them, it is train/ beside the test set. None,
    and a line that says why, if images are gone.
    """
    source = resolve_recorded(options["source"][-1], checkpoint)
    target = train_folder(test_data)
    if options.get("target"):
        target = resolve_recorded(options["target"], checkpoint)
    images, generator = [], torch.Generator().manual_seed(0)
    try:
        for folder in (source, target):
            data = UnlabeledImages(folder, env, model.config.width, model.config.height)
            if len(data) < 2:
                raise InputError(f"{folder}: a single image, expected two at least")
            chosen = torch.randperm(len(data), generator=generator)[:IMAGES].tolist()
            images.append(torch.stack([data[i] for i in chosen]).float() / 255)
    except InputError as error:
        log_info(f"no domain probe: {error.message}")
        return None
    return round(domain_probe(model, *images), 4)


def train_folder(test_data: Path) -> Path:
    """.../test or .../val -> .../train; .../test/kitti of a stand-in -> .../train/kitti."""
    inside = "kitti" if test_data.name == "kitti" else "."
    split = test_data.parent if inside == "kitti" else test_data
    return split.parent / "train" / inside if split.name in ("test", "val") else test_data
