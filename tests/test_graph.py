"""Scene-graph files: writing, reading back, and errors that name the file, line and field."""
import json

import numpy as np
import pytest

from sim2sg_lib.cli import InputError
from sim2sg_lib.graph import Vocabulary, make_graph, select_objects
from sim2sg_lib.io.graphs import from_json, read_graphs, to_json, write_graphs
from sim2sg_lib.io.reading import MAX_LINE

VOCABULARY = Vocabulary(("cube", "sphere"), ("left", "on"))
LINE = {"image": "images/000000.png", "width": 320, "height": 240,
        "objects": [{"category": "cube", "box": [123.0, 124.0, 146.0, 150.0],
                     "score": 1.0, "visible": 0.9},
                    {"category": "sphere", "box": [0.0, 0.0, 320.0, 240.0],
                     "truncated": 0.25, "ignore": True}],
        "relations": [[0, "on", 1, 0.5], [1, "left", 0]]}


def test_a_line_means_what_it_says(tmp_path):
    path = tmp_path / "graphs.jsonl"
    path.write_text(json.dumps(LINE) + "\n\n")
    graph, = read_graphs(path, VOCABULARY)
    assert (graph.image, graph.width, graph.height) == ("images/000000.png", 320, 240)
    np.testing.assert_array_equal(graph.labels, [0, 1])
    np.testing.assert_array_equal(graph.boxes_px, [[123, 124, 146, 150], [0, 0, 320, 240]])
    np.testing.assert_array_equal(graph.visible, [0.9, 1])
    np.testing.assert_array_equal(graph.truncated, [0, 0.25])
    np.testing.assert_array_equal(graph.ignore, [False, True])
    np.testing.assert_array_equal(graph.relations, [[0, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(graph.relation_scores, [0.5, 1])


def test_written_lines_have_the_documented_form(tmp_path):
    graph = make_graph("a.png", 10, 8, [1], [[1, 2, 3, 4]], scores=[0.25])
    assert to_json(graph, VOCABULARY) == {
        "image": "a.png", "width": 10, "height": 8,
        "objects": [{"category": "sphere", "box": [1.0, 2.0, 3.0, 4.0], "score": 0.25}],
        "relations": []}
    write_graphs(tmp_path / "g.jsonl", [graph, make_graph("b.png", 10, 8, [], [])], VOCABULARY)
    assert [len(g) for g in read_graphs(tmp_path / "g.jsonl", VOCABULARY)] == [1, 0]


def test_select_objects_renumbers_relations():
    graph = make_graph("a.png", 10, 8, [0, 1, 0], [[0, 0, 1, 1]] * 3,
                       [[0, 0, 2], [1, 1, 2], [2, 0, 0]], relation_scores=[0.1, 0.2, 0.3])
    kept = select_objects(graph, np.array([True, False, True]))
    np.testing.assert_array_equal(kept.relations, [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(kept.relation_scores, [0.1, 0.3])


def changed(**fields):
    return json.dumps(LINE | fields)


def with_object(**fields):
    return changed(objects=[LINE["objects"][0] | fields], relations=[])


@pytest.mark.parametrize("text, complaint", [
    ("{", "not valid JSON"),
    ("[1]", "expected a JSON object"),
    ("[" * 100_000, "not valid JSON"),
    (changed(image="../secret.png"), "image: expected a path inside"),
    (changed(image="/etc/passwd"), "image: expected a path inside"),
    (changed(width=0), "width: expected"),
    (changed(height=2.5), "height: expected"),
    (changed(color=1), "color: unknown field"),
    (changed(objects={}), "objects: expected a list"),
    (with_object(category="chair"), "objects[0].category: 'chair' is not one of cube, sphere"),
    (with_object(box=[1, 2, 3]), "objects[0].box: expected four finite numbers"),
    (with_object(box=[-1, 2, 3, 4]), "objects[0].box"),
    (with_object(box=[3, 2, 1, 4]), "objects[0].box"),
    (with_object(box=[1, 2, 321, 4]), "<= 320"),
    (with_object(box=[1, 2, "3", 4]), "objects[0].box"),
    (with_object(score=1.5), "objects[0].score"),
    (with_object(visible=-0.1), "objects[0].visible"),
    (with_object(ignore=1), "objects[0].ignore"),
    (with_object(color="red"), "objects[0].color: unknown field"),
    (with_object(box=[1, 2, 3, 4]).replace("3,", "NaN,", 1), "NaN is not a finite number"),
    (changed(relations=[[0, "on", 2]]), "relations[0]: object 2 is not an index below 2"),
    (changed(relations=[[0, "on", 0]]), "relations[0]: subject and object are both 0"),
    (changed(relations=[[0, "under", 1]]), "relations[0]: 'under' is not one of left, on"),
    (changed(relations=[[0, "on", 1, 7]]), "relations[0]: score 7"),
    (changed(relations=[[True, "on", 1]]), "relations[0]: subject True"),
    (changed(image="images\\0.png"), "image: expected a path inside"),
    (changed(image="\0"), "image: expected a path inside"),
    (changed(width=1).replace('"width": 1', '"width": 1, "width": 2'), "'width' is there twice"),
    (with_object(box=[1, 2, 3, 4]).replace("3,", "1e999,", 1), "1e999 is not a finite number"),
    (with_object(box=[1, 2, 3, 4]).replace("3,", "9" * 5000 + ",", 1), "not valid JSON"),
    (changed(image="\ud800.png"), "not valid JSON"),
    (changed(relations=json.loads("[" * 20 + "]" * 20)), "at most 16 nested lists and objects"),
    (changed(objects=LINE["objects"] * 501), "objects: 1002, expected 1000 at most"),
])
def test_bad_lines_are_named_by_file_line_and_field(tmp_path, text, complaint):
    path = tmp_path / "graphs.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + text + "\n")
    with pytest.raises(InputError) as error:
        read_graphs(path, VOCABULARY)
    message = error.value.format_message()
    assert message.startswith(f"{path}:2: ") and complaint in message and "\n" not in message


@pytest.mark.parametrize("count", [2, 2_000_000])
def test_no_relation_is_there_twice(count):
    with pytest.raises(ValueError, match=r"relations\[1\]: \[0, 'on', 1\] is there twice"):
        from_json(LINE | {"relations": [[0, "on", 1]] * count}, VOCABULARY)


def test_a_line_is_not_endless(tmp_path):
    (tmp_path / "graphs.jsonl").write_text(
        json.dumps(LINE) + "\n" + json.dumps(LINE | {"image": "x" * MAX_LINE}))
    with pytest.raises(InputError,
                       match=r"graphs.jsonl:2: \d+ characters, expected 8388608 per line at most"):
        read_graphs(tmp_path / "graphs.jsonl", VOCABULARY)


def test_what_a_line_quotes_is_shown_as_one_short_line():
    message = InputError("a\nb\x1b[2J\u202e\ud800" + "x" * 10**6 + "end").format_message()
    assert (message.startswith("a\\nb\\x1b[2J\\u202e\\ud800xxx") and message.endswith("xxxend")
            and len(message) == 600)


def test_a_byte_order_mark_and_any_line_end_are_read(tmp_path):
    path = tmp_path / "graphs.jsonl"
    text = json.dumps(LINE | {"image": "a\u2028b.png"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{text}\r\n{text}".encode())
    assert [graph.image for graph in read_graphs(path, VOCABULARY)] == ["a\u2028b.png"] * 2


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_graphs(tmp_path / "none.jsonl", VOCABULARY)
    (tmp_path / "b.jsonl").write_bytes(b"{}\n\xff\xfe\x00")
    with pytest.raises(InputError, match="b.jsonl:2: cannot be read as UTF-8"):
        read_graphs(tmp_path / "b.jsonl", VOCABULARY)
    with open(tmp_path / "large.jsonl", "wb") as file:
        file.truncate(2**28 + 1)  # sparse, takes no disk space
    with pytest.raises(InputError, match="large.jsonl: 268435457 bytes, "
                                         "expected JSON Lines, of 268435456 at most"):
        read_graphs(tmp_path / "large.jsonl", VOCABULARY)


def test_resizing_scales_the_boxes_alone():
    graph = make_graph("a.png", 160, 120, [1], [[10, 20, 80, 120]], scores=[0.5])
    double = graph.resized(320, 60)
    assert (double.width, double.height, double.boxes_px.tolist()) == (320, 60, [[20, 10, 160, 60]])
    assert double.scores.tolist() == [0.5] and graph.boxes_px.tolist() == [[10, 20, 80, 120]]
