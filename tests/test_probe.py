"""The domain probe on images whose domains are known, and in metrics.json."""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import run
from sim2sg_lib.net.backbone import quick_config
from sim2sg_lib.net.network import SceneGraphNet
from sim2sg_lib.score.probe import domain_probe, sampled_features, train_folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)  # of colors, since edges hide a change of contrast
    return SceneGraphNet(replace(quick_config(3, 4, 96, 72, imagenet=False), input="rgb"))


def scenes(count: int, seed: int, contrast: float = 1.0) -> torch.Tensor:
    """Images of one bright square each, on noise."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 + 0.1 * torch.rand(count, 3, 72, 96, generator=generator)
    for image in images:
        x, y = torch.randint(0, 50, (2,), generator=generator).tolist()
        image[:, y:y + 20, x:x + 20] += 0.4
    return 0.5 + contrast * (images - 0.5)


def test_equal_distributions_cannot_be_told_apart(model):
    values = [domain_probe(model, scenes(40, seed), scenes(40, seed + 1), seed) for seed in (0, 2)]
    assert max(values) < 0.6


def test_other_distributions_can(model):
    assert domain_probe(model, scenes(40, 0), scenes(40, 1, contrast=0.15)) > 0.9


def test_the_same_seed_gives_the_same_number_and_leaves_the_generator_alone(model):
    before = torch.get_rng_state()
    one, other = (domain_probe(model, scenes(12, 0), scenes(12, 1, contrast=0.6), 3) for _ in "ab")
    assert one == other and torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_an_image_that_was_fitted_is_not_tested(model, monkeypatch):
    """Labels that no feature explains: remembering the fitted half must not help."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr("sim2sg_lib.score.probe.sampled_features",
                        lambda *_: torch.randn(8, 32, 64, generator=generator))
    assert domain_probe(model, *torch.zeros(2, 8, 3, 72, 96)) < 0.6


def test_features_are_taken_where_objects_are(model):
    """With all objectness at one location, every sample is the feature there."""
    images = scenes(2, 0)
    with torch.no_grad():
        features = model(images).features

    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch):
            outputs = model(batch)
            outputs.objectness = {name: torch.zeros(len(batch), level[0, 0].numel())
                                  for name, level in outputs.features.items()}
            for level in outputs.objectness.values():
                level[:, 5] = 1e6
            return outputs

    found = sampled_features(Fixed(), images, torch.Generator().manual_seed(0))
    expected = torch.stack([features[name].flatten(2)[:, :, 5] for name in "01"], 1)  # (B, 2, C)
    assert torch.equal(found.reshape(2, 2, 16, -1), expected[:, :, None].expand(-1, -1, 16, -1))


def test_evaluate_writes_it_without_labels_of_the_target(toy, tmp_path, monkeypatch):
    shutil.copytree(toy / "data", tmp_path / "data")
    shutil.copytree(toy / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("metrics*"))

    def probe(name: str) -> float | None:
        run(tmp_path, "evaluate.py", "--checkpoint", f"runs/{name}/model.pt", "--data",
            "data/target/test", "--overwrite")
        return json.loads((tmp_path / f"runs/{name}/metrics.json").read_text())["probe"]

    plain, adapted = probe("0"), probe("1")
    assert 0.5 <= plain <= 1 and 0.5 <= adapted <= 1
    for name in ("graphs.jsonl", "scenes.jsonl"):
        (tmp_path / "data/target/train" / name).write_text("\0garbage")
    assert (probe("0"), probe("1")) == (plain, adapted)
    shutil.rmtree(tmp_path / "data/sdr")
    printed = run(tmp_path, "evaluate.py", "--checkpoint", "runs/0/model.pt", "--data",
                  "data/target/test", "--overwrite")
    assert "no domain probe" in printed and "data/sdr" in printed
    assert json.loads((tmp_path / "runs/0/metrics.json").read_text())["probe"] is None


@pytest.mark.parametrize("data, train", [
    ("a/target/test", "a/target/train"), ("a/target/val/kitti", "a/target/train/kitti"),
    ("a/photos", "a/photos"), ("a/kitti", "a/kitti")])
def test_the_train_folder_beside_a_test_set(data, train):
    assert train_folder(Path(data)) == Path(train)
