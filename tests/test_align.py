"""Gradient reversal and the discriminators: signs, factors, averages and schedules by hand."""
import math

import pytest
import torch

from sim2sg_lib.adapt.sim2sg import (
    AppearanceDiscriminator, Discriminators, PredictionDiscriminator, ReverseGradient,
    domain_loss, reversal_factor)
from sim2sg_lib.net.backbone import quick_config
from sim2sg_lib.net.relations import SceneGraphNet


def softplus(v):
    return math.log1p(math.exp(v))


def test_reversal_is_the_identity_forward_and_minus_factor_backward():
    x, w = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, 5.0], requires_grad=True)
    out = (ReverseGradient.apply(x, 4.0) * w).sum()
    assert out.item() == 13
    out.backward()
    assert x.grad.tolist() == [-12, -20] and w.grad.tolist() == [1, 2]


def test_domain_loss_by_hand():
    # source logits 0 and 2 in one entry, -1 in another; target logit 1
    loss, accuracy = domain_loss([torch.tensor([0.0, 2.0]), torch.tensor([-1.0])], [torch.tensor([1.0])])
    source = ((softplus(0) + softplus(2)) / 2 + softplus(-1)) / 2
    assert loss.item() == pytest.approx((source + softplus(-1)) / 2, rel=1e-6)
    assert accuracy == pytest.approx(((0.5 + 1.0) / 2 + 1.0) / 2)


def test_empty_images_count_for_nothing():
    empty, one = torch.zeros(0), torch.tensor([0.0])
    assert domain_loss([empty, one], [one])[0].item() == pytest.approx(math.log(2))
    loss, accuracy = domain_loss([empty], [empty])
    assert loss.item() == 0 and accuracy == 0.5


def test_weights_say_how_much_a_location_counts():
    loss, accuracy = domain_loss([torch.tensor([0.0, 2.0])], [torch.tensor([1.0, -3.0])],
                                 [torch.tensor([0.75, 0.25])], [torch.tensor([1.0, 0.0])])
    assert loss.item() == pytest.approx((0.75 * softplus(0) + 0.25 * softplus(2) + softplus(-1)) / 2, rel=1e-6)
    assert accuracy == pytest.approx((0.75 + 1.0) / 2)


def test_appearance_alignment_looks_where_objects_are_believed(monkeypatch):
    """With all belief in one location of each image, no other location gets a gradient."""
    torch.manual_seed(0)
    config = quick_config(3, 4, 160, 120)
    model, discriminators = SceneGraphNet(config), Discriminators(("appearance",), config)
    torch.nn.init.normal_(discriminators.appearance.layers[2].weight)
    features = {k: v.detach().requires_grad_() for k, v in model.features(torch.rand(2, 3, 120, 160)).items()}
    belief = {k: torch.zeros(2, v[0, 0].numel()) for k, v in features.items()}
    for level in belief.values():
        level[:, 7] = 0.5
    monkeypatch.setattr(model.detector, "objectness", lambda features: belief)
    sum(discriminators(model, features, 1.0, 1.0)[0].values()).backward()
    for name in "01":
        touched = features[name].grad.flatten(2).abs().sum(1) > 0  # (B, h * w)
        assert touched[:, 7].all() and touched.sum() == 2
    assert features["pool"].grad is None


def test_factor_schedules():
    assert [reversal_factor(step, 10, 4.0, 0.5, ramp=False) for step in (0, 4, 5, 9)] == [0, 0, 4, 4]
    assert reversal_factor(0, 10, 4.0, 0.0, ramp=True) == 0
    assert reversal_factor(5, 10, 4.0, 0.0, ramp=True) == pytest.approx(4 * (2 / (1 + math.exp(-5)) - 1))
    assert reversal_factor(1, 10, 4.0, 0.5, ramp=True) == 0


def test_discriminators_start_undecided():
    torch.manual_seed(0)
    logits = AppearanceDiscriminator(8)(torch.randn(2, 8, 3, 5))
    assert logits.shape == (2, 15) and logits.abs().max() < 0.1
    assert PredictionDiscriminator(20)(torch.randn(0, 20)).shape == (0,)


def test_alignment_descends_for_the_judge_and_ascends_for_the_network():
    """One step of D alone lowers the domain loss; one step of the network alone, behind the reversal, raises it."""
    torch.manual_seed(0)
    net, judge = torch.nn.Conv2d(3, 8, 1), AppearanceDiscriminator(8)
    for parameter in judge.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    images = torch.cat([torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)])

    def loss(factor):
        logits = judge(ReverseGradient.apply(net(images), factor))
        return domain_loss(list(logits[:2]), list(logits[2:]))[0]

    for module, direction in ((judge, -1), (net, 1)):
        before = loss(1.0)
        gradients = torch.autograd.grad(before, list(module.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients):
                parameter -= 0.01 * gradient
        assert (loss(1.0) - before).sign() == direction


def test_prediction_alignment_reaches_predictor_relations_and_encoder():
    torch.manual_seed(0)
    config = quick_config(3, 4, 160, 120)
    model = SceneGraphNet(config).train()
    # an untrained network detects nothing: make every class likely, so that there are tokens
    model.detector.roi_heads.box_predictor.cls_score.bias.data = torch.tensor([0.0, 1, 1, 1])
    discriminators = Discriminators(("appearance", "prediction"), config)
    torch.nn.init.normal_(discriminators.prediction.layers[2].weight)
    features = model.features(torch.rand(2, 3, 120, 160))
    losses, accuracies = discriminators(model, features, 1.0, 1.0)
    assert set(losses) == {"loss_appearance", "loss_prediction"}
    assert set(accuracies) == {"accuracy_appearance", "accuracy_prediction"}
    losses["loss_prediction"].backward()
    for part in (model.detector.roi_heads.box_predictor.cls_score, model.graph.predicate_logits,
                 model.detector.backbone.fpn.layer_blocks[0][0]):
        assert part.weight.grad.abs().sum() > 0


def test_prediction_alignment_moves_the_real_images_alone():
    torch.manual_seed(0)
    config = quick_config(3, 4, 160, 120)
    model, discriminators = SceneGraphNet(config).train(), Discriminators(("prediction",), config)
    model.detector.roi_heads.box_predictor.cls_score.bias.data = torch.tensor([0.0, 1, 1, 1])
    torch.nn.init.normal_(discriminators.prediction.layers[2].weight)
    features = {k: v.detach().requires_grad_() for k, v in model.features(torch.rand(2, 3, 120, 160)).items()}
    discriminators(model, features, 0.0, 1.0)[0]["loss_prediction"].backward()
    moved = [sum(float(level.grad[i].abs().sum()) for level in features.values() if level.grad is not None) for i in (0, 1)]
    assert moved[0] == 0 and moved[1] > 0
