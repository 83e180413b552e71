"""Adaptation: one shared forward pass, the table of methods, and gradient reversal by hand."""
import json
import math
from dataclasses import dataclass

import pytest
import torch

import train
from conftest import run
from envs import clevr, dining
from sim2sg_lib import adapt
from sim2sg_lib.adapt.base import Adaptation
from sim2sg_lib.adapt.sim2sg import (
    AppearanceAlignment, PredictionAlignment, ReverseGradient, domain_loss, reversal_factor)
from sim2sg_lib.cli import InputError
from sim2sg_lib.net.backbone import quick_config
from sim2sg_lib.net.network import Outputs, SceneGraphNet

CONFIG = quick_config(3, 4, 160, 120, imagenet=False)
METHODS = (AppearanceAlignment, PredictionAlignment)


def softplus(v):
    return math.log1p(math.exp(v))


def make_model() -> SceneGraphNet:
    """An untrained network to which every class is likely, so that it detects something."""
    torch.manual_seed(0)
    model = SceneGraphNet(CONFIG).train()
    model.detector.roi_heads.box_predictor.cls_score.bias.data = torch.tensor([0.0, 1, 1, 1])
    return model


def make_method(kind, factor: float) -> Adaptation:
    """A method without a ramp, whose discriminator is far from chance level, and obeyed anyway."""
    method = kind(CONFIG, type(kind.PRESETS["quick"])(factor, False, 2e-3))
    method.CHANCE_LOSS = math.inf
    torch.nn.init.normal_(method.layers[2].weight)
    return method


def random_outputs(model, seed: int) -> Outputs:
    """Outputs of one random image whose features are leaves of the graph."""
    image = torch.rand(1, 3, 120, 160, generator=torch.Generator().manual_seed(seed))
    return Outputs(model, {name: level.detach().requires_grad_()
                           for name, level in model.features(image).items()})


def moved(outputs: Outputs) -> float:
    return sum(float(level.grad.abs().sum()) for level in outputs.features.values()
               if level.grad is not None)


# --- gradient reversal and the domain loss --------------------------------------------------------

def test_reversal_is_the_identity_forward_and_minus_factor_backward():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    w = torch.tensor([3.0, 5.0], requires_grad=True)
    out = (ReverseGradient.apply(x, torch.tensor(4.0)) * w).sum()
    assert out.item() == 13
    out.backward()
    assert x.grad.tolist() == [-12, -20] and w.grad.tolist() == [1, 2]


def test_domain_loss_by_hand():
    # source logits 0 and 2 in one entry, -1 in another; target logit 1
    source, target = [torch.tensor([0.0, 2.0]), torch.tensor([-1.0])], [torch.tensor([1.0])]
    loss, accuracy = domain_loss(source, target)
    expected = ((softplus(0) + softplus(2)) / 2 + softplus(-1)) / 2
    assert loss.item() == pytest.approx((expected + softplus(-1)) / 2, rel=1e-6)
    assert accuracy == pytest.approx(((0.5 + 1.0) / 2 + 1.0) / 2)


def test_empty_images_do_not_count():
    empty, one = torch.zeros(0), torch.tensor([0.0])
    assert domain_loss([empty, one], [one])[0].item() == pytest.approx(math.log(2))
    loss, accuracy = domain_loss([empty], [empty])
    assert loss.item() == 0 and accuracy == 0.5


def test_weights_of_locations_by_hand():
    loss, accuracy = domain_loss([torch.tensor([0.0, 2.0])], [torch.tensor([1.0, -3.0])],
                                 [torch.tensor([0.75, 0.25])], [torch.tensor([1.0, 0.0])])
    expected = (0.75 * softplus(0) + 0.25 * softplus(2) + softplus(-1)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert accuracy == pytest.approx((0.75 + 1.0) / 2)


def test_factor_schedules():
    assert reversal_factor(0, 4.0, ramp=False) == reversal_factor(0.9, 4.0, ramp=False) == 4
    assert reversal_factor(0, 4.0, ramp=True) == 0
    assert reversal_factor(0.5, 4.0, ramp=True) == pytest.approx(4 * (2 / (1 + math.exp(-5)) - 1))


def test_alignment_descends_for_the_discriminator_and_ascends_for_the_network():
    """One step of D alone lowers the domain loss; one step of the network alone, behind the
    reversal, raises it."""
    torch.manual_seed(0)
    net, discriminator = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 1, 1)
    for parameter in discriminator.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    images = torch.cat([torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)])

    def loss(factor):
        logits = discriminator(ReverseGradient.apply(net(images), torch.tensor(factor))).flatten(1)
        return domain_loss(list(logits[:2]), list(logits[2:]))[0]

    for module, direction in ((discriminator, -1), (net, 1)):
        before = loss(1.0)
        gradients = torch.autograd.grad(before, list(module.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients):
                parameter -= 0.01 * gradient
        assert (loss(1.0) - before).sign() == direction


# --- D_a and D_c ----------------------------------------------------------------------------------

def test_appearance_alignment_looks_where_the_rpn_sees_objects():
    """With all objectness at one location of each image, no other location gets a gradient."""
    model, method = make_model(), make_method(AppearanceAlignment, 1.0)
    domains = [random_outputs(model, seed) for seed in (0, 1)]
    for outputs in domains:
        outputs.objectness = {name: torch.zeros(1, level[0, 0].numel())
                              for name, level in outputs.features.items()}
        for level in outputs.objectness.values():
            level[:, 7] = 0.5
    sum(method.losses(model, *domains, 0.5)[0].values()).backward()
    for outputs in domains:
        for name in "01":
            touched = outputs.features[name].grad[0].flatten(1).abs().sum(0) > 0  # (h * w,)
            assert touched[7] and touched.sum() == 1
        assert outputs.features["pool"].grad is None


@pytest.mark.parametrize("name", ["appearance", "prediction"])
def test_discriminators_start_at_chance_level(name):
    model = make_model()
    methods = adapt.make(adapt.choose_knobs(name, (), "quick"), CONFIG)
    losses, notes = methods[name].losses(model, *(random_outputs(model, s) for s in (0, 1)), 0.0)
    assert losses[f"loss_{name}"].item() == pytest.approx(methods[name].CHANCE_LOSS, abs=0.02)
    assert set(notes) == {f"accuracy_{name}", f"reversal_{name}"} and notes[f"reversal_{name}"] == 0


def test_prediction_alignment_reaches_predictor_relations_and_encoder():
    model, method = make_model(), make_method(PredictionAlignment, 1.0)
    source, target = (model(torch.rand(1, 3, 120, 160)) for _ in range(2))
    method.losses(model, source, target, 0.5)[0]["loss_prediction"].backward()
    for part in (model.detector.roi_heads.box_predictor.cls_score, model.graph.predicate_logits,
                 model.detector.backbone.fpn.layer_blocks[0][0]):
        assert part.weight.grad.abs().sum() > 0


def test_prediction_alignment_moves_the_real_images_alone():
    model, method = make_model(), make_method(PredictionAlignment, 1.0)
    source, target = random_outputs(model, 0), random_outputs(model, 1)
    method.losses(model, source, target, 0.5)[0]["loss_prediction"].backward()
    assert moved(source) == 0 and moved(target) > 0


def test_the_rpn_head_runs_once_per_domain():
    model, methods = make_model(), [make_method(kind, 1.0) for kind in METHODS]
    calls = []
    model.detector.rpn.head.register_forward_hook(lambda *args: calls.append(1))
    target = {"boxes": torch.tensor([[20.0, 20, 50, 60]]), "labels": torch.tensor([1]),
              "relations": torch.zeros(0, 3, dtype=torch.int64), "ignore_boxes": torch.zeros(0, 4)}
    source, real = (model(torch.rand(1, 3, 120, 160)) for _ in range(2))
    losses = model.losses(source, [target])
    assert len(calls) == 1  # the plain step needs nothing of the target
    for method in methods:
        losses |= method.losses(model, source, real, 0.5)[0]
    sum(losses.values()).backward()
    assert len(calls) == 2


# --- the table of methods and the command line ----------------------------------------------------

def test_knobs_of_the_command_line():
    assert adapt.choose_knobs("", (), "quick") == {}
    knobs = adapt.choose_knobs("appearance, prediction",
                               ("appearance.factor=4", "prediction.ramp=false"), "quick")
    assert (knobs["appearance"].factor, knobs["appearance"].ramp) == (4.0, True)
    assert (knobs["prediction"].factor, knobs["prediction"].ramp) == (0.02, False)
    assert adapt.choose_knobs("appearance", (), "paper")["appearance"].factor == 4.0


@pytest.mark.parametrize("align, setting, words", [
    ("apearance", "", "--align: 'apearance' is not one of appearance, prediction"),
    ("appearance", "appearance.gain=1", "appearance.factor, appearance.ramp, appearance.lr"),
    ("appearance", "prediction.factor=1", "with appearance.factor, appearance.ramp"),
    ("appearance", "appearance.factor", "expected a finite number from 0 on"),
    ("appearance", "appearance.factor=-1", "expected a finite number from 0 on"),
    ("appearance", "appearance.factor=NaN", "expected a finite number from 0 on"),
    ("appearance", "appearance.factor=1e999", "expected a finite number from 0 on"),
    ("appearance", "appearance.factor=true", "expected a finite number from 0 on"),
    ("appearance", "appearance.ramp=1", "expected true or false"),
    ("", "appearance.factor=1", "with a method of --align")])
def test_wrong_names_and_values_get_one_line(align, setting, words):
    with pytest.raises(InputError, match=words) as error:
        adapt.choose_knobs(align, (setting,) if setting else (), "quick")
    assert "\n" not in error.value.message


@dataclass(frozen=True)
class Weight:
    weight: float


class MeanFeatures(Adaptation):
    """The smallest method there is: squared distance of the domains' mean features."""

    PRESETS = {"quick": Weight(0.1), "paper": Weight(0.1)}

    def losses(self, model, source, target, progress):
        means = [outputs.features["0"].mean((0, 2, 3)) for outputs in (source, target)]
        loss = self.knobs.weight * (means[0] - means[1]).square().sum()
        return {"loss_means": loss}, {"progress": progress}


@pytest.mark.parametrize("env, init, steps, warmup", [
    (clevr.ENV, False, 400, 0.0), (clevr.ENV, True, 300, 0.0), (dining.ENV, False, 500, 0.0),
    (dining.ENV, True, 350, 0.3)])
def test_steps_and_warmup_are_the_environment_s(env, init, steps, warmup):
    schedule = train.make_schedule(env.presets["quick"], "quick", init, False)
    assert (schedule.steps, schedule.warmup, schedule.batch) == (steps, warmup, 4)
    given = train.make_schedule(env.presets["paper"], "paper", init, True, steps=7, warmup=0.0)
    assert (given.steps, given.warmup, given.optimizer) == (7, 0.0, "sgd")


TRAIN = ["--source", "data/sdr", "--steps", 10]
ALIGN = [*TRAIN, "--target", "data/target/train", "--align"]


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)["weights"]


def equal_weights(one, other) -> bool:
    one, other = weights(one), weights(other)
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_new_method_trains_through_the_command_line(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(adapt.METHODS, "means", MeanFeatures)
    run(toy, "train.py", *ALIGN, "means,appearance", "--set", "means.weight=0.5", "--warmup", 0.2,
        "--out", tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["adaptation"]["means"] == {"weight": 0.5}
    assert config["adaptation"]["appearance"]["lr"] == 2e-3
    row = json.loads((tmp_path / "run/log.jsonl").read_text())
    assert row["loss_means"] > 0 and row["loss_appearance"] > 0
    assert row["progress"] == pytest.approx(3.5 / 8)  # mean over 0/8 ... 7/8
    run(toy, "train.py", *ALIGN, "means", "--out", tmp_path / "alone")  # it has no parameters
    assert not equal_weights(tmp_path / "run", tmp_path / "alone")


def test_a_factor_of_zero_is_the_plain_row(toy, tmp_path, one_thread):
    run(toy, "train.py", *TRAIN, "--out", tmp_path / "plain")
    for factor in (0, 1):
        run(toy, "train.py", *ALIGN, "appearance,prediction", "--set", f"appearance.factor={factor}",
            "--set", f"prediction.factor={factor}", "--out", tmp_path / str(factor))
    assert equal_weights(tmp_path / "plain", tmp_path / "0")
    assert not equal_weights(tmp_path / "plain", tmp_path / "1")
