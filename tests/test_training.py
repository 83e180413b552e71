"""Training: augmentation, averaged weights, rates, shares of data sets, discriminators that go on."""
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import train
from conftest import run
from envs import clevr, dining, drive
from sim2sg_lib import adapt, checkpoint, training_state
from sim2sg_lib.adapt.base import Adaptation
from sim2sg_lib.adapt.sim2sg import AppearanceAlignment
from sim2sg_lib.augment import augment, blurred, smooth_noise
from sim2sg_lib.data_loading import batches
from sim2sg_lib.net.backbone import quick_config
from sim2sg_lib.net.network import SceneGraphNet
from sim2sg_lib.training_state import TrainingLog, averaged

TRAIN = ["--source", "data/sdr", "--steps", 4]
ALIGN = [*TRAIN, "--target", "data/target/train", "--align", "appearance"]


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)["weights"]


def equal(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def small_model() -> SceneGraphNet:
    torch.manual_seed(0)
    return SceneGraphNet(quick_config(3, 4, 64, 48, imagenet=False)).train()


# --- augmentation ---------------------------------------------------------------------------------

@pytest.fixture
def pictures():
    """Squares on a ramp, (4, 3, 48, 64)."""
    images = torch.linspace(0.2, 0.6, 64).expand(4, 3, 48, 64).clone()
    for i, image in enumerate(images):
        image[i % 3, 10:30, 5 + 8 * i:25 + 8 * i] += 0.3
    return images


@pytest.mark.parametrize("kind", ["color", "full", "strong"])
def test_augmented_images_are_images_and_depend_on_the_seed_alone(pictures, kind):
    changed = augment(pictures, kind, (0, 1, 2))
    assert changed.shape == pictures.shape and 0 <= changed.min() and changed.max() <= 1
    assert torch.equal(changed, augment(pictures, kind, (0, 1, 2)))
    assert not torch.equal(changed, augment(pictures, kind, (0, 1, 3)))
    same = augment(pictures[:1].expand(2, -1, -1, -1), kind, (0,))
    assert not torch.equal(same[0], same[1])  # each image draws its own numbers


def test_it_reaches_a_network_on_edges(pictures):
    detector = small_model().detector
    seen = []
    detector.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for kind in ("none", "color", "full"):
        detector.features(augment(pictures, kind, (0,)))
    none, color, full = seen

    def change(seen):
        return ((seen - none).square().mean().sqrt() / none.std()).item()
    assert change(color) < 0.3 < 0.6 < change(full)


def test_no_augmentation_changes_nothing(pictures):
    assert augment(pictures, "none", (0,)) is pictures


def test_images_of_every_domain_are_augmented(toy, tmp_path, monkeypatch):
    """An augmentation that blackens the target's images alone, or all: no domain is left out."""
    domains = []

    def blacken(images, kind, seed):
        domains.append((kind, *seed[1:]))
        return images * (seed[1] == 0)

    monkeypatch.setattr("sim2sg_lib.augment.augment", blacken)
    monkeypatch.setitem(adapt.METHODS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "losses", lambda self, model, source, target, _: (
        Recorder.seen.append(blank(target)) or {}, {}))
    Recorder.seen.clear()
    run(toy, "train.py", "--source", "data/sdr", "--source", "data/1", "--target",
        "data/target/train", "--align", "recorder", "--augment", "strong", "--steps", 2,
        "--out", tmp_path / "run")
    # the task's images, the target's and those of the newest data set, each with its own numbers
    assert domains == [("strong", domain, step) for step in (0, 1) for domain in (0, 1, 2)]
    assert Recorder.seen == [True] * 2


def test_blur_and_noise_by_hand():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 256
    taps = torch.tensor([1.0, 4, 6, 4, 1])
    assert torch.allclose(blurred(image)[0, 0, 2:7, 2:7], taps[:, None] * taps)
    assert torch.allclose(blurred(torch.full((1, 3, 5, 7), 0.3)), torch.full((1, 3, 5, 7), 0.3))
    noise = smooth_noise(torch.zeros(50, 3, 30, 40), np.random.default_rng(0))
    assert abs(noise.mean()) < 0.02 and 0.3 < noise.std() < 0.6  # of a uniform grid: 0.58


# --- averaged weights, rates, batches -------------------------------------------------------------

def test_the_average_of_weights_by_hand():
    layer = torch.nn.Linear(1, 1, bias=False)
    mean, last = averaged(layer, 0.5), averaged(layer, 0.0)
    expected = None
    for steps, value in enumerate([1.0, 3.0, -2.0, 5.0, 4.0, 8.0, 1.0, 2.0, 9.0, 3.0]):
        layer.weight.data.fill_(value)
        for average in (mean, last):
            average.update_parameters(layer)
        decay = min(0.5, (1 + steps) / (10 + steps)) if steps else 0.0
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert mean.module.weight.item() == pytest.approx(expected, rel=1e-6)
        assert last.module.weight.item() == value


def test_the_average_is_what_is_saved(toy, tmp_path):
    for name, options in (("plain", ["--ema", 0]), ("mean", ["--ema", 0.5])):
        run(toy, "train.py", *TRAIN, *options, "--out", tmp_path / name)
    assert not equal(weights(tmp_path / "plain"), weights(tmp_path / "mean"))


def test_the_encoder_keeps_its_fraction_of_the_rate():
    model = small_model()
    schedule = train.make_schedule(clevr.ENV.presets["quick"], "quick", False, True, steps=6)
    state = train.make_state(model, {}, schedule)
    heads, body = state.optimizer.param_groups
    assert {id(p) for p in body["params"]} == {
        id(p) for p in model.detector.backbone.body.parameters()}
    assert len(heads["params"]) + len(body["params"]) == len(list(model.parameters()))
    rates = []
    for _ in range(6):
        rates.append(heads["lr"])
        assert body["lr"] == pytest.approx(0.2 * heads["lr"])
        state.optimizer.step()
        state.lr_scheduler.step()
    assert max(rates) == pytest.approx(5e-4, rel=0.05) and min(rates) < 1e-4


@pytest.mark.parametrize("env, quick, paper", [(clevr, 4, 4), (dining, 4, 2), (drive, 2, 2)])
def test_defaults_of_the_presets(env, quick, paper):
    for preset, imagenet, expected in (("quick", True, (quick, 0.2, 0.99)),
                                       ("quick", False, (quick, 1.0, 0.99)),
                                       ("paper", True, (paper, 1.0, 0.999))):
        schedule = train.make_schedule(env.ENV.presets[preset], preset, True, imagenet)
        assert (schedule.batch, schedule.encoder_rate, schedule.ema) == expected
        assert (schedule.augment, schedule.newest) == ("full", None)


def test_a_share_of_the_newest_data_set():
    """6 images, the last 2 the newest: half of each batch; every epoch of a part has all of it."""
    order = batches(6, 4, 4, seed=0, newest=2, share=0.5)
    assert [sum(i >= 4 for i in batch) for batch in order] == [2] * 4
    old = [i for batch in order for i in batch if i < 4]
    new = [i for batch in order for i in batch if i >= 4]
    assert sorted(old[:4]) == sorted(old[4:]) == [0, 1, 2, 3]
    assert all(sorted(new[i:i + 2]) == [4, 5] for i in range(0, 8, 2))
    flat = [i for batch in batches(6, 4, 10, seed=0, newest=2, share=0.1) for i in batch]
    assert sum(i >= 4 for i in flat) == 4
    for share, allowed in ((0.0, {0, 1, 2, 3}), (1.0, {4, 5})):
        assert {i for b in batches(6, 4, 4, 0, 2, share) for i in b} == allowed


def test_labeled_target_images_are_a_source_like_any_other(toy, tmp_path):
    """The oracle's row."""
    run(toy, "train.py", "--source", "data/sdr", "--source", "data/target/train", "--newest", 0.5,
        "--init", "runs/0/model.pt", "--steps", 2, "--out", tmp_path / "oracle")
    config = json.loads((tmp_path / "oracle/config.json").read_text())
    assert config["schedule"]["newest"] == 0.5 and len(config["source"]) == 2


# --- discriminators -------------------------------------------------------------------------------

@dataclass(frozen=True)
class NoKnobs:
    """A method without settings."""


def blank(outputs) -> bool:
    """Whether all images of a domain have equal features."""
    level = outputs.features["0"]
    return torch.allclose(level, level[:1], atol=1e-5)


class Recorder(Adaptation):
    """Notes whether all source images it sees have equal features."""

    PRESETS = {"quick": NoKnobs()}
    seen = []

    def losses(self, model, source, target, progress):
        self.seen.append((len(source.features["0"]), blank(source)))
        return {}, {}


def test_methods_see_the_newest_data_set_alone(toy, tmp_path, monkeypatch):
    shutil.copytree(toy / "data/1", tmp_path / "black")
    for path in (tmp_path / "black/images").iterdir():
        Image.new("RGB", (160, 120)).save(path)
    monkeypatch.setitem(adapt.METHODS, "recorder", Recorder)
    Recorder.seen.clear()
    run(toy, "train.py", "--source", "data/sdr", "--source", tmp_path / "black", "--target",
        "data/target/train", "--align", "recorder", "--augment", "none", "--steps", 3,
        "--out", tmp_path / "run")
    assert Recorder.seen == [(4, True)] * 3


def test_discriminators_go_on_from_init(toy, tmp_path):
    printed = run(toy, "train.py", *ALIGN, "--init", "runs/1/model.pt", "--out", tmp_path / "on")
    assert "the discriminators of runs/1/model.pt go on" in printed
    content = torch.load(toy / "runs/1/model.pt", weights_only=True)
    assert {name.split(".")[0] for name in content["methods"]} == {"appearance", "prediction"}
    methods = adapt.make(adapt.choose_knobs("appearance", (), "quick"),
                         checkpoint.load(toy / "runs/1/model.pt", clevr.ENV).config)
    assert checkpoint.load_methods(content, methods) == ["appearance"]
    assert torch.equal(methods["appearance"].layers[0].weight,
                       content["methods"]["appearance.layers.0.weight"])
    # older files have none, and weights of another shape are not taken
    assert checkpoint.load_methods({"methods": {"appearance.layers.0.weight": torch.ones(1)}},
                                   methods) == []
    del content["methods"]
    torch.save(content, tmp_path / "old.pt")
    assert "go on" not in run(toy, "train.py", *ALIGN, "--init", tmp_path / "old.pt", "--out",
                              tmp_path / "old")


def test_a_runaway_stops_hurting_for_good(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "LOSS_RANGE", (1.5, 3.0))  # "always right" at once
    monkeypatch.setattr(training_state, "LOG_EVERY", 2)
    printed = run(toy, "train.py", *ALIGN, "--steps", 6, "--set", "appearance.ramp=false",
                  "--out", tmp_path / "run")
    assert printed.count("its reversal factor is 0 from now on") == 1
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["reversal_appearance"] for row in rows][1:] == [0, 0]
    assert all("loss_appearance" in row for row in rows)


def test_a_stopped_method_stays_stopped_when_a_run_resumes(tmp_path):
    knobs = adapt.choose_knobs("appearance", (), "quick")
    schedule = train.make_schedule(clevr.ENV.presets["quick"], "quick", False, False, steps=9)
    state, again = (train.make_state(small_model(), knobs, schedule) for _ in range(2))
    state.methods["appearance"].stopped.fill_(True)
    log = TrainingLog(tmp_path / "log.jsonl", 4, 0.0, {"appearance": 0.7})
    state.save(tmp_path / "state.pt", 5, log)
    assert again.restore(tmp_path / "state.pt", log, torch.device("cpu")) == 5
    assert again.methods["appearance"].stopped and log.chance_losses == {}
    assert again.methods["appearance"].factor(0.9) == 0


@pytest.mark.parametrize("logit, moves", [(-3.0, True), (3.0, False)])
def test_the_network_flees_a_discriminator_to_chance_level_and_no_further(logit, moves):
    """The discriminator takes synthetic images for synthetic (-3), or always for real ones (3)."""
    model = small_model()
    method = AppearanceAlignment(model.config, AppearanceAlignment.PRESETS["quick"])
    method.layers = torch.nn.Conv2d(128, 1, 1)
    torch.nn.init.constant_(method.layers.weight, 1 / 128)
    torch.nn.init.zeros_(method.layers.bias)
    domains = [model(torch.rand(1, 3, 48, 64)) for _ in range(2)]
    for own, value in zip(domains, (logit, -logit)):
        own.features = {name: torch.full_like(level, value).requires_grad_()
                        for name, level in own.features.items()}
    losses, notes = method.losses(model, *domains, 0.9)
    losses["loss_appearance"].backward()
    assert (losses["loss_appearance"] < method.CHANCE_LOSS) == moves
    assert (notes["reversal_appearance"] > 0) == moves
    assert all((own.features["0"].grad.abs().sum() > 0) == moves for own in domains)
    assert method.layers.weight.grad.abs().sum() > 0  # the discriminator learns in any case
