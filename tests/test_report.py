"""The report of a loop and predictions on any images, against numbers worked out by hand."""
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import envs
from conftest import ENVIRONMENT, ROOT, run
from envs.clevr import ENV
from sim2sg_lib.net import predict
from sim2sg_lib import checkpoint
from sim2sg_lib.dataset import open_images
from sim2sg_lib.graph import Vocabulary, make_graph
from sim2sg_lib.io.graphs import read_graphs, write_graphs
from sim2sg_lib.io.images import output_names, read_image
from sim2sg_lib.score.content import content, content_gap
from sim2sg_lib.score.metrics import (
    FN, FP, TP, detection_scores, match_graphs, recall_scores, without_labels)
from sim2sg_lib.viz.drawings import (
    MAX_ARROWS, draw_curves, draw_histograms, draw_objects, draw_relations, find_text_place,
    group_arrows, node_positions, to_dot)
from sim2sg_lib.viz.report import CASE_INCHES
from sim2sg_lib.viz.sheet import sheet_rows

VOCABULARY = Vocabulary(("cube", "ball"), ("left", "right"))
LEFT, RIGHT_OF = 0, 1


def boxes(*lefts: float) -> list[tuple]:
    """10 x 10 pixels each."""
    return [(x, 0, x + 10, 10) for x in lefts]


# --- what the curves are made of ------------------------------------------------------------------

def test_precision_over_recall_by_hand_and_its_mean_is_the_ap():
    truth = make_graph("a.png", 100, 100, [0] * 4, boxes(0, 20, 40, 60))
    # right, wrong, right, wrong, right; the fourth object is never found
    predicted = make_graph("a.png", 100, 100, [0] * 5, boxes(0, 80, 20, 90, 40),
                           scores=[0.9, 0.8, 0.7, 0.6, 0.5])
    scores = detection_scores([truth], [predicted], VOCABULARY)
    curve = scores["precision_at_recall"]["cube"]
    assert np.allclose(curve, [1] * 26 + [2 / 3] * 25 + [3 / 5] * 25 + [0] * 25)
    assert np.mean(curve) == scores["ap50"]["cube"]
    assert scores["precision_at_recall"]["ball"] is None is scores["ap50"]["ball"]


def test_recall_curve_and_images_by_hand():
    truth = make_graph("a.png", 100, 100, [0, 1], boxes(0, 20), [(0, LEFT, 1), (1, RIGHT_OF, 0)])
    predicted = make_graph("a.png", 100, 100, [0, 1], boxes(0, 20),
                           [(0, LEFT, 1), (0, RIGHT_OF, 1), (1, RIGHT_OF, 0)],
                           relation_scores=[0.9, 0.8, 0.7])
    nothing = make_graph("b.png", 100, 100, [], [])
    unrelated = make_graph("b.png", 100, 100, [0], boxes(0))
    scores = recall_scores([truth, truth, unrelated], [predicted, nothing, nothing], VOCABULARY)
    # one of two images finds all, the other nothing
    assert scores["recall_curve"] == [0.25, 0.25, 0.5] + [0.5] * 97
    # the second rank is gone
    assert scores["recall_curve_graph_constraint"][:3] == [0.25, 0.5, 0.5]
    assert all(scores["recall_curve"][int(k) - 1] == value for k, value in scores["recall"].items())
    assert scores["recall_per_image"]["20"] == [1, 0, None]


def test_content_by_hand_is_what_the_gap_is_the_distance_of():
    a = [make_graph("a", 100, 100, [0, 1], boxes(0, 20), [(0, LEFT, 1)]),
         make_graph("b", 100, 100, [0], boxes(0))]
    b = [make_graph("a", 100, 100, [0] * 4, boxes(0, 20, 40, 60),
                    ignore=[False, False, False, True])]
    assert content(a, VOCABULARY) == {"objects_per_image": [0, 0.5, 0.5],
                                      "categories": [2 / 3, 1 / 3], "predicates": [1, 0]}
    assert content(b, VOCABULARY) == {"objects_per_image": [0, 0, 0, 1], "categories": [1, 0],
                                      "predicates": None}
    assert content_gap(content(a, VOCABULARY), content(b, VOCABULARY)) == {"objects_per_image": 1,
                                             "categories": pytest.approx(1 / 3), "predicates": None}


# --- true positives, false positives, false negatives ---------------------------------------------

def test_matches_by_hand():
    truth = make_graph("a.png", 100, 100, [0, 1, 0], boxes(0, 20, 40),
                       [(0, LEFT, 1), (1, LEFT, 2), (0, LEFT, 2), (1, RIGHT_OF, 0)])
    # the third object is mistaken for a ball; of two detections of the first, AP takes the surer
    predicted = make_graph("a.png", 100, 100, [0, 1, 1, 0], boxes(0, 20, 40, 1),
                           [(0, LEFT, 1), (1, LEFT, 2), (0, RIGHT_OF, 1), (3, LEFT, 1)],
                           scores=[0.9, 0.8, 0.7, 0.6])
    found, wanted = match_graphs(truth, predicted)
    assert found.objects == [TP, TP, FP, FP]
    assert found.relations == [TP, FP, FP, TP]  # for recall any hit is one
    assert wanted.objects == [TP, TP, FN]
    by_relation = {tuple(row): status
                   for row, status in zip(wanted.graph.relations.tolist(), wanted.relations)}
    assert by_relation == {(0, LEFT, 1): TP, (1, LEFT, 2): FN, (0, LEFT, 2): FN,
                           (1, RIGHT_OF, 0): FN}


def test_an_iou_of_one_half_at_both_ends_matches_and_just_below_does_not():
    truth = make_graph("a.png", 100, 100, [0, 1], boxes(0, 20), [(0, LEFT, 1)])
    for width, statuses in ((5, (TP, TP)), (4.9, (FP, FN))):
        narrow = make_graph("a.png", 100, 100, [0, 1], [(0, 0, width, 10), (20, 0, 30, 10)],
                            [(0, LEFT, 1)])
        found, wanted = match_graphs(truth, narrow)
        assert (found.relations[0], wanted.relations[0]) == statuses


def test_ignored_objects_and_regions_are_not_drawn():
    truth = make_graph("a.png", 100, 100, [0, 0, 0], boxes(0, 20, 40), [(0, LEFT, 1)],
                       visible=[1, 0, 1],
                       ignore=[False, False, True])
    predicted = make_graph("a.png", 100, 100, [0] * 4, boxes(0, 20, 41, 60),
                           [(0, LEFT, 1), (0, LEFT, 3)])
    found, wanted = match_graphs(truth, predicted)
    assert found.objects == [TP, FP] and found.relations == [FP]
    assert found.graph.boxes_px[1, 0] == 60
    assert wanted.objects == [TP] and wanted.relations == []
    nothing = make_graph("a.png", 100, 100, [], [])
    assert [half.objects for half in match_graphs(nothing, nothing)] == [[], []]
    assert match_graphs(nothing, predicted)[0].objects == [FP] * 4
    assert match_graphs(truth, nothing)[1].objects == [FN]


# --- drawings -------------------------------------------------------------------------------------

def test_an_arrow_holds_the_predicates_of_one_direction_and_the_surest_are_drawn():
    graph = make_graph("a.png", 100, 100, [0, 1], boxes(0, 20),
                       [(0, LEFT, 1), (1, LEFT, 0), (0, RIGHT_OF, 1)],
                       relation_scores=[0.6, 0.7, 0.8])
    assert list(group_arrows(without_labels(graph), VOCABULARY).items()) == [
        ((0, 1, "predicted"), ["right", "left"]), ((1, 0, "predicted"), ["left"])]
    crowd = [(s, LEFT, o) for s in range(6) for o in range(6) if s != o]
    graph = make_graph("a.png", 100, 100, [0] * 6, boxes(*range(0, 60, 10)), crowd,
                       relation_scores=np.arange(30) / 30)
    drawn = list(group_arrows(without_labels(graph), VOCABULARY))
    assert drawn == [(s, o, "predicted") for s, _, o in crowd[:-MAX_ARROWS - 1:-1]]


def test_circles_lie_as_the_boxes_do_and_a_central_node_in_the_middle():
    square = make_graph("a.png", 100, 100, [0] * 4,
                        [(80, 40, 90, 50), (40, 0, 50, 10), (0, 40, 10, 50), (40, 80, 50, 90)])
    assert np.allclose(node_positions(square), [(1, 0), (0, 1), (-1, 0), (0, -1)])
    star = make_graph("a.png", 100, 100, [0] * 4, square.boxes_px,
                      [(0, LEFT, i) for i in (1, 2, 3)])
    assert np.allclose(node_positions(star)[0], 0)
    assert np.allclose(np.linalg.norm(node_positions(star)[1:], axis=1), 1)
    assert node_positions(make_graph("a.png", 100, 100, [], [])).shape == (0, 2)


def test_texts_at_boxes_do_not_hide_one_another():
    graph, taken = make_graph("a.png", 100, 100, [], []), []
    places = [find_text_place(np.array([20.0, 50, 40, 70]), 30, 10, graph, taken) for _ in range(9)]
    assert places == [(20, 40), (20, 70), (20, 50), (20, 60), (20, 30), (20, 80), None, None, None]
    # at the right edge it ends with the box
    assert find_text_place(np.array([80.0, 0, 100, 20]), 30, 10, graph, [])[0] == 70


def drawn_graph(graph, names) -> tuple:
    """Axes with a case's graph, and its circles as (middle (2,), diameter) in pixels."""
    figure = Figure((CASE_INCHES, CASE_INCHES), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_relations(axes, without_labels(graph), names)
    figure.canvas.draw()
    return axes, [(axes.transData.transform(circle.get_offsets()[0]),
                   circle.get_sizes()[0] ** 0.5 * 100 / 72)
                  for circle in axes.collections]


@pytest.mark.parametrize("count", [2, 5, 8, 14, 30])
def test_words_of_a_crowded_graph_hide_neither_circles_nor_one_another(count):
    rng, names = np.random.default_rng(count), Vocabulary(("vegetation", "car"),
                                                          ("behind", "right", "front"))
    corners = rng.uniform(0, 80, (count, 2))
    crowd = [(s, p, o) for s in range(count) for o in range(count) for p in range(3) if s != o]
    graph = make_graph("a.png", 100, 100, rng.integers(0, 2, count),
                       np.hstack([corners, corners + 20]), crowd,
                       relation_scores=rng.random(len(crowd)))
    axes, circles = drawn_graph(graph, names)
    texts = [text.get_window_extent() for text in axes.texts if text.get_text()
             and text.get_zorder() < 5]
    assert len(circles) == count and len(texts) > 1
    for i, text in enumerate(texts):
        assert not any(text.overlaps(other) for other in texts[:i])
        for middle, diameter in circles:  # from it to the text's nearest point
            assert np.linalg.norm(np.clip(middle, text.min, text.max) - middle) > diameter / 2 - 1
    drawn = [text.get_text() for text in axes.texts]
    left_out = len(crowd) - sum(len(words.split()) for words in drawn if words.split()
                                and words.split()[0] in names.predicates)
    assert not left_out or f"{left_out} more not drawn" in drawn


def test_names_fit_into_circles_and_crowded_boxes_keep_their_numbers():
    graph = make_graph("a.png", 100, 100, [0] * 8, [(10, 10, 90, 90)] * 8)
    names = Vocabulary(("vegetation",), ("left",))
    axes, circles = drawn_graph(graph, names)
    assert [text.get_text() for text in axes.texts] == [f"{i}\nvegetation" for i in range(8)]
    assert all(text.get_window_extent().width < 0.95 * diameter
               for text, (_, diameter) in zip(axes.texts, circles))
    axes = Figure((CASE_INCHES, 1)).add_axes((0, 0, 1, 1))
    graph = make_graph("a.png", 100, 100, [0] * 30, [(3 * i, 40, 3 * i + 3, 50) for i in range(30)])
    draw_objects(axes, np.zeros((100, 100, 3), np.uint8), without_labels(graph), names)
    written = [text.get_text() for text in axes.texts]
    assert "0 vegetation" in written and any(text.isdecimal() for text in written)
    assert len(written) < 30


def test_object_counts_are_whole_numbers():
    fractions = dict.fromkeys(("objects_per_image", "categories", "predicates"),
                           [0.1, 0.2, 0.3, 0.2, 0.1, 0.1])
    figure = draw_histograms(fractions, fractions,
                             {"objects_per_image": None, "categories": tuple("abcdef"),
                              "predicates": None}, "sdr")
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_a_curve_of_one_point_is_seen():
    axes = draw_curves({"one": ([1], [2.0]), "two": ([1, 2], [2.0, 3.0])}, "", ("x", "y")).axes[0]
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]


def test_dot_escapes_what_is_hostile():
    graph = make_graph('a"b\\\nc.png', 100, 100, [0, 1], boxes(0, 20), [(0, LEFT, 1)], [0.5, 1],
                       relation_scores=[0.25])
    assert to_dot(graph, Vocabulary(('cu"be', "ball"), ("left", "right"))) == (
        'digraph "a\\"b\\\\ c.png" {\n  0 [label="0 cu\\"be 0.50"];\n  1 [label="1 ball 1.00"];\n'
        '  0 -> 1 [label="left 0.25"];\n}\n')


# --- the report's command line --------------------------------------------------------------------

HOSTILE = 'lo<b>op & "co'


def make_sure(path, copy) -> None:
    """Copy a checkpoint of the toy, and make its untrained network take everything for an object."""
    content = torch.load(path, weights_only=True)
    for name in ("detector.roi_heads.box_predictor.cls_score.bias", "graph.object_logits.bias"):
        content["weights"][name][0] -= 5
    # the copy lies elsewhere, and records are relative to the run
    content["options"]["source"] = [os.path.normpath(path.parent / folder)
                                    for folder in content["options"]["source"]]
    torch.save(content, copy)


@pytest.fixture(scope="module")
def loop(toy, tmp_path_factory):
    """A loop of two rows with a report, made of the toy's runs."""
    loop = tmp_path_factory.mktemp("report") / HOSTILE
    for name, number in (("start", 0), ("appearance1", 1)):
        shutil.copytree(toy / f"runs/{number}", loop / name,
                        ignore=shutil.ignore_patterns("metrics*", "figures"))
        make_sure(toy / f"runs/{number}/model.pt", loop / name / "model.pt")
        run(toy, "evaluate.py", "--checkpoint", loop / name / "model.pt", "--data",
            "data/target/test")
    config = json.loads((loop / "appearance1/config.json").read_text())
    config["source"] = ["data/sdr", "data/1"]
    (loop / "appearance1/config.json").write_text(json.dumps(config))
    (loop / "options.txt").write_text("ENV=clevr <script>alert(1)</script>")
    assert "report.html" in run(toy, "evaluate.py", "report", loop)
    return loop


class Page(HTMLParser):
    """Collects what a page would load, and sees that its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.loads, self.tags, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes
                       if name in ("src", "href", "srcset", "data", "poster")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_one_file_that_parses(loop):
    text = (loop / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    first = (loop / "appearance1/predictions.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["objects"]
    assert not page.open and "script" not in page.tags and "link" not in page.tags
    assert "b" not in page.tags
    assert all(re.match(r"data:image/(svg\+xml|jpeg);base64,", load) for load in page.loads)
    assert len(page.loads) > 20
    # the last case's figures
    shown = [base64.b64decode(load.split(",")[1]).decode() for load in page.loads[-4:]]
    assert all(f'width="{72 * CASE_INCHES:g}pt"' in svg for svg in shown)
    assert CASE_INCHES * 96 <= 390 - 2 * 16
    assert "min-width" not in text[text.index("<body"):]  # nothing is wider than a phone
    assert "://" not in text and "url(" not in text and "@import" not in text
    assert HOSTILE in "".join(page.text) and "<script>alert(1)</script>" in "".join(page.text)
    titles = [heading.strip() for heading in re.findall("<h2>(.*?)</h2>", text)]
    assert titles == ["The table", "Target images and lifted scenes", "Content gap", "Detection",
                      "Relations", "Training",
                      "Scene graphs of + label + appearance, iteration 1", "Worst cases"]


def test_the_page_shows_the_numbers_of_the_files(loop, toy):
    metrics, curves = (json.loads((loop / f"appearance1/{name}.json").read_text())
                       for name in ("metrics", "curves"))
    assert "curves" not in metrics and "precision_at_recall" not in metrics
    for category, precision in curves["precision_at_recall"].items():
        assert precision is None or np.mean(precision) == metrics["ap50"][category]
    assert [curves["recall_curve"][k - 1]
            for k in (20, 50, 100)] == list(metrics["recall"].values())
    assert len(curves["recall_per_image"]["20"]) == metrics["images"] == 4
    assert len(curves["content"]["target"]["categories"]) == 3 and "content" not in metrics
    text = (loop / "report.html").read_text(encoding="utf-8")
    assert f"<td>{metrics['map50']:.3f}</td>" in text
    assert f"{metrics['content_gap']['categories']:.3f}" in text
    run(toy, "evaluate.py", "report", loop)
    assert (loop / "report.html").read_text(encoding="utf-8") == text  # the same bytes again


def test_a_report_says_what_it_lacks(loop, toy, tmp_path):
    shutil.copytree(loop, tmp_path / "loop",
                    ignore=shutil.ignore_patterns("curves.json", "log.jsonl", "figures"))
    for name in ("start", "appearance1"):
        path = tmp_path / "loop" / name / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "gone"}))
    # in another folder, so the data sets are gone, too
    run(tmp_path, "evaluate.py", "report", "loop")
    text = (tmp_path / "loop/report.html").read_text()
    assert "No curves.json in start, appearance1" in text and not Page(text).loads
    shutil.copytree(loop, tmp_path / "other")
    metrics = json.loads((tmp_path / "other/appearance1/metrics.json").read_text())
    other = json.dumps(metrics | {"data": "data/target/val"})
    (tmp_path / "other/appearance1/metrics.json").write_text(other)
    (tmp_path / "other/appearance1/predictions.jsonl").write_text("")
    assert "are not those of" in run(toy, "evaluate.py", "report", tmp_path / "other", code=3)
    line = run(tmp_path, "evaluate.py", "report", tmp_path, code=3)
    assert "no start/, sdr/, label1/, ... with metrics.json" in line


def test_the_sheet_has_a_row_of_the_fitted_look(toy, tmp_path):
    """Of a mixed look every second image is a fitted one; all rows show the same target images."""
    shutil.copytree(toy / "data/1", tmp_path / "look")
    info = json.loads((toy / "data/1/dataset.json").read_text())
    sets = {"sdr": toy / "data/sdr", "label1": toy / "data/1", "look1": tmp_path / "look"}
    table = {name: {"source": [str(toy / "data/sdr"), str(folder)]} for name, folder in sets.items()}
    for look, shown in (("fitted", range(6)), ("mixed", range(0, 10, 2))):
        (tmp_path / "look/dataset.json").write_text(json.dumps(info | {"look": look}))
        captions, images = zip(*sheet_rows(table))
        assert captions == ("target", "SDR", "+ label, iteration 1", "+ label + look, iteration 1")
        for found, folder in zip(images[1:], sets.values()):
            expected = [read_image(folder / f"images/{i:06d}.png", 160, 120) for i in shown]
            assert len(found) == len(shown) and all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_drawing_packages_there_is_one_line_and_a_table(loop, toy, tmp_path, package):
    (tmp_path / f"{package}.py").write_text("raise ImportError")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    line = run(toy, "evaluate.py", "report", loop, code=3, environment=environment)
    assert f"pip install {package}" in line
    assert "mAP@0.5" in run(toy, "evaluate.py", "--summary", loop, environment=environment)
    assert not (loop / "report.html.partial").exists()


def test_training_logs_become_event_files(loop, toy):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):  # the second time in the place of the first
        assert run(toy, "evaluate.py", "tensorboard", loop).count("event files written") == 2
    assert len(list((loop / "appearance1").glob("events.out.tfevents.*"))) == 1
    events = accumulator.EventAccumulator(str(loop / "appearance1"))
    events.Reload()
    row = json.loads((loop / "appearance1/log.jsonl").read_text().splitlines()[-1])
    last = events.Scalars("loss/appearance")[-1]
    assert last.step == row["step"] and last.value == pytest.approx(row["loss_appearance"])
    assert "accuracy/prediction" in events.Tags()["scalars"] and "rate" in events.Tags()["scalars"]
    assert "no log.jsonl" in run(toy, "evaluate.py", "tensorboard", "data", code=3)
    concluded = json.loads(run(toy, "evaluate.py", "tensorboard", loop, "--json"))
    assert concluded["runs"] == [str(loop / name) for name in ("appearance1", "start")]
    assert run(toy, "evaluate.py", "-q", "tensorboard", loop) == ""


def test_without_tensorboard_one_line_says_how_to_get_it(loop, toy, tmp_path):
    (tmp_path / "tensorboard.py").write_text("raise ImportError")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    line = run(toy, "evaluate.py", "tensorboard", loop, code=3, environment=environment)
    assert "pip install tensorboard" in line


# --- the user's environment -----------------------------------------------------------------------

HOSTILE_STYLE = """
text.usetex: True
font.family: cursive
font.size: 30
axes.facecolor: black
axes.grid: True
figure.dpi: 33
figure.constrained_layout.use: True
savefig.dpi: 7
savefig.bbox: tight
savefig.transparent: True
svg.fonttype: none
lines.linewidth: 9
path.sketch: 3, 100, 2
"""


def test_pictures_do_not_depend_on_matplotlibrc_and_backend(loop, toy, tmp_path):
    (tmp_path / "matplotlibrc").write_text(HOSTILE_STYLE)
    image = toy / "data/target/test/images/000000.png"
    pages = []
    notebook = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
                "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    for name, settings in (("plain", {"MPLBACKEND": "agg"}), ("styled", notebook)):
        environment = ENVIRONMENT | settings
        run(toy, "evaluate.py", "report", loop, environment=environment)
        run(toy, "evaluate.py", "predict", image, "--checkpoint", loop / "start/model.pt",
            "--threshold", 0.3, "--out",
            tmp_path / name, environment=environment)
        pages.append(((loop / "report.html").read_bytes(),
                      (tmp_path / name / "000000.png").read_bytes()))
    assert pages[0] == pages[1]


# --- where the program is started -----------------------------------------------------------------

def test_scores_depend_neither_on_the_working_directory_nor_on_the_spelling_of_paths(toy, tmp_path):
    """The program is started where another experiment has data at the same relative path."""
    shutil.copytree(toy / "runs/0", tmp_path / "here/runs/0",
                    ignore=shutil.ignore_patterns("metrics*", "curves*"))
    shutil.copytree(toy / "data/sdr", tmp_path / "here/data/sdr")
    shutil.copytree(toy / "data/target/test", tmp_path / "elsewhere/data/sdr")
    # as earlier versions recorded it
    content = torch.load(tmp_path / "here/runs/0/model.pt", weights_only=True)
    content["options"]["source"] = ["data/sdr"]
    torch.save(content, tmp_path / "here/runs/0/model.pt")
    (tmp_path / "link").symlink_to("here/runs/0")
    results = []
    for cwd, model in (("here", "runs/0/model.pt"),
                       ("elsewhere", tmp_path / "here/runs/0/model.pt"),
                       ("elsewhere", "../link/model.pt")):
        # it is the same checkpoint, so that the second metrics replace the first without --overwrite
        run(tmp_path / cwd, "evaluate.py", "--checkpoint", model, "--data",
            toy / "data/target/test", "--out", tmp_path / "out")
        metrics = json.loads((tmp_path / "out/metrics.json").read_text())
        results.append({name: value for name, value in metrics.items() if name != "command"})
    assert results[0] == results[1] == results[2]
    assert results[0]["content_gap"]["objects_per_image"] > 0
    assert results[0]["checkpoint"] == str(tmp_path / "here/runs/0/model.pt")
    line = run(tmp_path, "evaluate.py", "--checkpoint", toy / "runs/1/model.pt", "--data",
               toy / "data/target/test", "--out",
               tmp_path / "out", code=3)
    assert "holds the metrics of checkpoint" in line
    # no file is called so
    (tmp_path / "out/metrics.json").write_text(json.dumps({"checkpoint": "x\0y", "data": "x\0y"}))
    arguments = ["evaluate.py", "--checkpoint", toy / "runs/1/model.pt", "--out", tmp_path / "out"]
    line = run(tmp_path, *arguments, "--data", toy / "data/target/test", code=3)
    assert "holds the metrics of checkpoint" in line


# --- predict's command line -----------------------------------------------------------------------

def test_predict_reads_any_size_and_keeps_equal_names_apart(toy, tmp_path):
    with Image.open(toy / "data/target/test/images/000000.png") as image:
        small = image.convert("RGB")
    for name, size in (("a/x.png", (160, 120)), ("b/x.png", (320, 240)), ("b/X.JPG", (90, 300)),
                       ("b/<i>'$a$.png", (700, 50))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        small.resize(size, Image.Resampling.NEAREST).save(tmp_path / name)
    make_sure(toy / "runs/0/model.pt", tmp_path / "sure.pt")
    arguments = ["--checkpoint", tmp_path / "sure.pt", "--threshold", 0.3, "--out",
                 tmp_path / "out"]
    printed = run(toy, "evaluate.py", "predict", tmp_path / "a", tmp_path / "b",
                  tmp_path / "b/x.png", *arguments)
    assert printed.startswith("4 images, ") and printed.rstrip().endswith(str(tmp_path / "out"))
    stems = ["x", "<i>'$a$", "X_2", "x_3"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "graphs.jsonl", "predict.json",
        *(f"{stem}.{end}" for stem in stems for end in ("png", "dot"))}
    graphs = read_graphs(tmp_path / "out/graphs.jsonl", ENV.vocabulary)
    assert [(g.image, g.width, g.height) for g in graphs] == [
        ("x.png", 160, 120), ("<i>'$a$.png", 700, 50), ("X_2.JPG", 90, 300), ("x_3.png", 320, 240)]
    # an enlarged image is the same to the network, and boxes are in pixels of the image
    assert len(graphs[0]) and (graphs[0].scores >= 0.3).all()
    assert (graphs[0].relation_scores >= 0.3).all()
    assert np.allclose(2 * graphs[0].boxes_px, graphs[3].boxes_px, atol=0.01)
    record = json.loads((tmp_path / "out/predict.json").read_text())
    assert record["images"]["X_2.JPG"] == str(tmp_path / "b/X.JPG") and record["threshold"] == 0.3
    with Image.open(tmp_path / "out/x.png") as overlay:
        assert overlay.size == (640 + 480, 480)
    assert (tmp_path / "out/x.dot").read_text().count("->") == len(graphs[0].relations)
    # a folder with results is replaced with --overwrite only, and only if predict made it
    assert "is not empty" in run(toy, "evaluate.py", "predict", tmp_path / "a", *arguments, code=3)
    printed = run(toy, "evaluate.py", "predict", tmp_path / "a", *arguments, "--threshold", 1,
                  "--overwrite")
    assert "1 images, 0 objects and 0 relations" in printed
    assert not (tmp_path / "out/X_2.png").exists()
    line = run(toy, "evaluate.py", "predict", tmp_path / "a", *arguments[:-1], tmp_path / "b",
               "--overwrite", code=3)
    assert "is not overwritten" in line


def test_a_threshold_means_the_same_for_predict_as_for_lifting(toy, tmp_path, monkeypatch):
    adaptive = replace(ENV, adaptive=True)
    monkeypatch.setattr(envs, "find", lambda *_: adaptive)
    make_sure(toy / "runs/0/model.pt", tmp_path / "sure.pt")
    images = open_images(toy / "data/target/test", ENV)
    everything = predict.predict_folder(checkpoint.load(tmp_path / "sure.pt", ENV), images, ENV,
                                        0.0, 0.0)
    expected = predict.thresholds(everything, adaptive, 0.9)
    run(toy, "evaluate.py", "predict", "data/target/test", "--checkpoint", tmp_path / "sure.pt",
        "--threshold", 0.9, "--out",
        tmp_path / "out")
    record = json.loads((tmp_path / "out/predict.json").read_text())
    assert list(record["thresholds"].values()) == expected and min(expected) < 0.9
    graphs = read_graphs(tmp_path / "out/graphs.jsonl", ENV.vocabulary)
    assert [len(graph)
            for graph in graphs] == [int((graph.scores >= np.array(expected)[graph.labels]).sum())
                                                for graph in everything]


def test_as_many_images_at_once_as_memory_allows(toy, tmp_path, monkeypatch):
    images = open_images(toy / "data/target/test", ENV)
    make_sure(toy / "runs/0/model.pt", tmp_path / "sure.pt")
    model = checkpoint.load(tmp_path / "sure.pt", ENV)
    seen, whole = [], model.predict
    monkeypatch.setattr(model, "predict", lambda features,
                        possible: seen.append(len(features["0"])) or whole(features, possible))
    together = predict.predict_folder(model, images, ENV, 0.0, 0.0)
    monkeypatch.setattr(predict, "BATCH_PIXELS", 3 * 160 * 120 + 1)
    apart = predict.predict_folder(model, images, ENV, 0.0, 0.0)
    assert seen == [4, 3, 1] and [graph.image for graph in apart] == images.names
    assert all(np.allclose(a.boxes_px, b.boxes_px, atol=1e-2) for a, b in zip(together, apart))
    assert sum(map(len, apart))


def test_what_predict_calls_an_image_can_be_read(tmp_path):
    names = output_names(["a/x.png", "b\\x.png", "caf\udce9.png", "X.jpg"])
    assert names == ["x.png", "b_x.png", "caf_.png", "X_2.jpg"]
    write_graphs(tmp_path / "graphs.jsonl", [make_graph(name, 9, 9, [], []) for name in names],
                 VOCABULARY)
    assert [graph.image for graph in read_graphs(tmp_path / "graphs.jsonl", VOCABULARY)] == names


def test_every_command_concludes_with_one_object(loop, toy, tmp_path):
    def concluded(*arguments):
        return json.loads(run(toy, "evaluate.py", *arguments))

    image, checkpoint = toy / "data/target/test/images/000000.png", toy / "runs/0/model.pt"
    arguments = ["predict", image, "--checkpoint", checkpoint, "--threshold", 1, "--out",
                 tmp_path / "out"]
    assert concluded("--json", *arguments) == {"out": str(tmp_path / "out"), "threshold": 1,
                                               "images": 1, "objects": 0,
                                               "relations": 0}
    assert concluded("report", loop, "--json") == {"report": str(loop / "report.html"),
                                                   "rows": ["start", "appearance1"]}
    assert list(concluded("--summary", loop, "--json")["rows"]) == ["start", "appearance1"]


def test_predict_does_not_replace_what_it_reads(toy, tmp_path):
    shutil.copytree(toy / "data/sdr", tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    line = run(toy, "evaluate.py", "predict", tmp_path / "set/images", "--checkpoint",
               "runs/0/model.pt", "--out", tmp_path / "set",
               "--overwrite", code=3)
    assert f"holds {tmp_path}/set/images, which is read" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments, words", [
    (["none.png"], "none.png: no such file or folder"), (["runs"], "no PNG or JPEG image"),
    (["data/sdr/graphs.jsonl"], "graphs.jsonl: not a readable PNG or JPEG image"),
    (["data/sdr", "--checkpoint", "none.pt"], "none.pt: no such file")])
def test_mistakes_of_predict_get_one_line(toy, tmp_path, arguments, words):
    line = run(toy, "evaluate.py", "predict", *arguments, "--out", tmp_path / "out", code=3)
    assert line.startswith("Error: ") and words in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "report", "tensorboard"])
def test_help_of_a_command_needs_no_torch_and_the_program_s_options_go_with_none(toy, command):
    code = ("import runpy, sys; sys.argv = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end: assert end.code == 0\n"
            "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)")
    result = subprocess.run([sys.executable, "-c", code, str(ROOT / "evaluate.py"), command,
                             "--help"], capture_output=True,
                            text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert f"python evaluate.py {command} " in result.stdout
    result = subprocess.run([sys.executable, str(ROOT / "evaluate.py"), "--split", "hard", command,
                             "x"], capture_output=True,
                            text=True, env=ENVIRONMENT, cwd=toy)
    assert result.returncode == 2 and "go behind it" in result.stderr
