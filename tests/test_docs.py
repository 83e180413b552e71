"""The documents: length, links, names, command lines, numbers, and the example."""
import ast
import importlib
import re
import runpy
import shlex

import click
import numpy as np
import pytest
from conftest import ROOT, run
from PIL import Image

import sim2sg_lib

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs/results/README.md"]
SCRIPTS = ("synthesize", "train", "evaluate")
SOURCES = [ROOT / f"{name}.py" for name in SCRIPTS]
for folder in ("sim2sg_lib", "envs", "examples"):
    SOURCES += sorted((ROOT / folder).rglob("*.py"))
FOLDERS = ("sim2sg_lib", "envs", "examples", "tests", "docs",
           "sim", "net", "adapt", "score", "io", "viz")
FILE_ENDINGS = ("py", "sh", "md", "json", "jsonl", "pt", "png", "html", "txt")
OTHERS_OPTIONS = {"--logdir", "--help"}  # an option of tensorboard, and one that click adds

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def code_blocks(text):
    return re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)


def without_blocks(text):
    return re.sub(r"^```\w*\n.*?^```", "", text, flags=re.S | re.M)


def code_spans(page):
    return re.findall(r"`([^`\n]+)`", without_blocks(page.read_text()))


# --- README ---------------------------------------------------------------------------------------

def test_readme_is_read_in_five_minutes():
    text = README.read_text()
    assert text.count("\n") <= 140
    assert len(text.split()) <= 1300


def test_readme_leads_to_the_lines_that_matter():
    """README names the command of the loop, and the files of lifting and of gradient reversal."""
    text = README.read_text()
    assert text.index("make loop") < text.index("## Seven terms")
    assert "`sim/lift.py`" in text
    assert "def lift_box(" in (ROOT / "sim2sg_lib/sim/lift.py").read_text()
    line = next(line for line in text.splitlines() if "`ReverseGradient`" in line)
    assert "`adapt/sim2sg.py`" in line
    assert "class ReverseGradient" in (ROOT / "sim2sg_lib/adapt/sim2sg.py").read_text()


def test_the_diagram_is_that_of_the_package():
    blocks = code_blocks(README.read_text())
    diagram = next(block for block in blocks if "SceneGraph --> lift" in block)
    assert diagram in sim2sg_lib.__doc__


def test_versions_agree():
    version = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    assert sim2sg_lib.__version__ == version


def test_code_md_has_every_module():
    text = (ROOT / "docs/code.md").read_text()
    library = [str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"]
    assert [path for path in library if f"`{path}`" not in text] == []


# --- links ----------------------------------------------------------------------------------------

def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT) and file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README.read_text()))
    assert {f"docs/{page.name}" for page in PAGES if page.parent == ROOT / "docs"} <= linked


# --- names ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def names():
    """Module or class name -> names defined in it; modules of the same name share one entry."""
    found = {}
    for path in SOURCES:
        module = path.parent.name if path.name == "__init__.py" else path.stem
        tree = ast.parse(path.read_text())
        found.setdefault(module, set()).update(defined(tree))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(defined(node))
    for room in (ROOT / "sim2sg_lib").iterdir():
        if room.is_dir():
            found.setdefault(room.name, set()).update(path.stem for path in room.glob("*.py"))
    return found


def defined(node):
    """Functions, classes and variables in the body of a module or class."""
    for statement in node.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            nodes = [node for target in targets for node in ast.walk(target)]
            yield from (node.id for node in nodes if isinstance(node, ast.Name))


@pages
def test_files_exist(page):
    for span in code_spans(page):
        inside = re.fullmatch(r"(\w+)/[\w./-]*", span)
        if inside and inside[1] in FOLDERS or re.fullmatch(r"\w+\.(py|sh)|Makefile", span):
            places = (ROOT / span, ROOT / "sim2sg_lib" / span, ROOT / "envs" / span)
            assert any(place.exists() for place in places), span


def unknown_names(spans, names):
    """Code spans that look like a name of the project but are not defined in it."""
    source = "\n".join(path.read_text() for path in SOURCES)
    unknown = []
    for span in spans:
        parts = span.removesuffix("()").split(".")
        dotted = re.fullmatch(r"\w+(\.\w+)+(\(\))?", span) and parts[-1] not in FILE_ENDINGS
        if dotted and parts[0] in names:
            steps = zip(parts, parts[1:])
            unknown += [span for whole, part in steps if part not in names.get(whole, {part})]
        elif re.fullmatch(r"[A-Z][a-z]\w*", span) and span not in {"Makefile", *names}:
            unknown.append(span)
        elif re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", span) and span not in source:
            unknown.append(span)
    return unknown


def test_unknown_names_are_found(names):
    good = ["lift.lift", "sim.lift.lift_box", "Camera.ground_point", "Env", "lift_box()",
            "torch.load", "graphs.jsonl"]
    assert unknown_names(good, names) == []
    bad = ["lift.raise_up", "Camera.ground_points", "SceneGraf", "lift_all_the_boxes"]
    assert unknown_names(bad, names) == bad


@pages
def test_names_in_code_spans_exist(page, names):
    assert unknown_names(code_spans(page), names) == []


@pages
def test_imports_in_code_blocks_exist(page, names):
    for block in code_blocks(page.read_text()):
        for module, imported in re.findall(r"^from (sim2sg_lib[\w.]*) import (.+)$", block, re.M):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
            assert set(imported.split(", ")) <= names[module.split(".")[-1]], imported


# --- command lines --------------------------------------------------------------------------------

def command_lines(page):
    """Command lines in code blocks and spans, as lists of words without leading variables."""
    lines = "".join(code_blocks(page.read_text())).replace("\\\n", " ").splitlines()
    for line in lines + code_spans(page):
        line = re.sub(r"^([A-Z_0-9]+=\S+ )+", "", line)
        if re.match(r"(make|python) ", line):
            yield [word for word in shlex.split(line, comments=True) if word != "..."]


def parse(words):
    """Parses a script's command line without running it; fails if the script would refuse it."""
    command, arguments = importlib.import_module(words[0].removesuffix(".py")).main, words[1:]
    if isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(words[0], arguments)


def check_command(words):
    """Fails for a command line that is not valid in this project."""
    if words[0] == "python" and words[1].removesuffix(".py") in SCRIPTS:
        parse(words[1:])
    elif words[0] == "python":
        path = f"{words[2].replace('.', '/')}/__main__.py" if words[1] == "-m" else words[1]
        assert (ROOT / path).exists(), words
    else:
        rules = "\n".join(path.read_text() for path in (ROOT / "Makefile", *ROOT.glob("*.sh")))
        variables = [word.split("=")[0] for word in words[1:] if "=" in word]
        targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert all(re.search(rf"\b{name}\b", rules) for name in variables), words
        assert all(re.search(rf"^{re.escape(target)}:", rules, re.M) for target in targets), words


@pytest.mark.parametrize("line", [
    "python synthesize.py --nonsense", "python train.py --steps many", "python evaluate.py predict",
    "python nothing.py", "python -m nothing", "make nothing", "make loop NOTHING=1"])
def test_wrong_command_lines_are_found(line):
    with pytest.raises((click.UsageError, AssertionError)):
        check_command(line.split())


@pages
def test_command_lines_parse(page):
    for words in command_lines(page):
        try:
            check_command(words)
        except click.ClickException as error:
            pytest.fail(f"{' '.join(words)}: {error.format_message()}")


@pages
def test_options_in_code_spans_exist(page):
    known = set(OTHERS_OPTIONS)
    for script in SCRIPTS:
        main = importlib.import_module(script).main
        for command in (main, *getattr(main, "commands", {}).values()):
            for option in command.params:
                known |= {*option.opts, *option.secondary_opts}
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(code_spans(page))))
    assert found <= known, found - known


# --- numbers --------------------------------------------------------------------------------------

LOOPS = sorted({folder.name[:-2] for folder in (ROOT / "docs/results").glob("*-[0-9]")})


@pytest.mark.parametrize("loops", LOOPS)
def test_tables_of_results_are_those_of_the_files(loops):
    """docs/results.md has each row that `evaluate.py --summary` prints."""
    folders = sorted((ROOT / "docs/results").glob(f"{loops}-[0-9]"))
    printed = run(ROOT, "evaluate.py", *(f"--summary={folder}" for folder in folders))
    lines = [line.rstrip() for line in printed.splitlines()]
    rows = [line for line in lines if re.match(r"(SDR|\+ |oracle).* \d\.\d{3} .* \d+$", line)]
    shown = [line.rstrip() for line in (ROOT / "docs/results.md").read_text().splitlines()]
    common = set.intersection(*({row.name for row in folder.iterdir()} for folder in folders))
    assert len(rows) == len(common) >= 2
    assert [row for row in rows if row not in shown] == []


def test_numbers_of_the_readme_are_those_of_the_results():
    shown = (ROOT / "docs/results.md").read_text()
    cells = re.findall(r"\d\.\d+ ± \d\.\d+", README.read_text())
    assert len(cells) == 10
    assert all(cell in shown for cell in cells)


# --- the example ----------------------------------------------------------------------------------

def test_hello_scene(tmp_path, monkeypatch, capsys):
    """The sphere is (3, 0.8) m from the cube; the camera looks along (-0.75, 0.66)."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples/hello_scene.py"), run_name="__main__")
    assert capsys.readouterr().out.split("\n")[:-1] == [
        "cube left sphere", "cube behind sphere", "sphere right cube", "sphere front cube"]
    picture = np.asarray(Image.open(tmp_path / "hello_scene.png").convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(picture[:, :640], 2, 0)
    assert (red - np.maximum(green, blue) > 60).sum() > 5000  # the cube
    assert (blue - np.maximum(red, green) > 60).sum() > 2000  # the sphere
    assert (picture[:, 640:].min(2) < 128).sum() > 500        # the graph beside the image
    with Image.open(ROOT / "docs/hello_scene.png") as shown:
        assert (shown.height, shown.width) == picture.shape[:2]


def test_hello_scene_is_20_lines():
    assert (ROOT / "examples/hello_scene.py").read_text().count("\n") <= 20
