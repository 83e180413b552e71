"""Do two checkouts of the project make the same bytes? For changes that should move code only.

    git worktree add /tmp/before REVISION
    python tests/same_bytes.py make /tmp/before /tmp/bytes_before
    python tests/same_bytes.py make . /tmp/bytes_after /tmp/bytes_before/models
    python tests/same_bytes.py compare /tmp/bytes_before /tmp/bytes_after

`make` runs the command lines of one checkout at toy size, all in one process: data sets of every
environment and domain, of `--graphs`, lifted with and without `--refine`, exported; predictions and
metrics of the checkpoints in the third folder, or, without one, of newly trained checkpoints.
`compare` prints the files that differ and ends with 1 if there is one.
"""
import importlib
import json
import os
import sys
from pathlib import Path

# environment -> threshold above which the toy checkpoints detect objects
ENVS = {"clevr": 0.06, "dining": 0.3, "drive": 0.06}
DOMAINS = ("target", "target-content", "target-appearance")
BYTES = ("*.png", "graphs.jsonl", "cameras.jsonl", "scenes.jsonl", "predicted.jsonl",
         "predictions.jsonl", "*.txt", "annotations.json")
RECORDS = ("dataset.json", "metrics*.json", "curves*.json")
# fields of the records that may differ: spelling of options and paths
FREE = ("command", "checkpoint", "data", "target", "graphs", "seconds")


def make(checkout: Path, out: Path, models: Path | None) -> None:
    """Run the command lines of `checkout`, which write into `out`."""
    sys.path.insert(0, str(checkout))
    import torch
    torch.set_num_threads(2)
    scripts = {name: importlib.import_module(name) for name in ("synthesize", "train", "evaluate")}
    options = {param.name for param in scripts["synthesize"].main.params}
    strong = ("--randomize" if "randomize" in options else "--randomise", "strong")

    def run(script: str, *arguments) -> None:
        print(script, *arguments, flush=True)
        scripts[script].main([*map(str, arguments), "-q"], standalone_mode=False)

    out.mkdir(parents=True, exist_ok=True)
    if models:  # the content gap is that of the data sets they were trained on
        (out / "train").symlink_to(models.parent / "train")
    os.chdir(out)
    for env, threshold in ENVS.items():
        on_env, inside = ("--env", env), "/kitti" if env == "drive" else ""
        run("synthesize", *on_env, "--num", 4, "--out", f"{env}/source")
        run("synthesize", *on_env, "--num", 3, *strong, "--seed", 5, "--out", f"{env}/strong")
        for domain in DOMAINS:
            formats = "kitti,coco" if (env, domain) == ("drive", "target") else "coco"
            run("synthesize", *on_env, "--domain", domain, "--num", 6, "--seed", 1,
                "--export", formats, "--out", f"{env}/{domain}")
        if models is None:
            run("synthesize", *on_env, "--num", 60, "--seed", 7, "--out", f"train/{env}")
            run("train", "--source", f"train/{env}", "--steps", 120, "--out", f"models/{env}")
        checkpoint = (models or out / "models").resolve() / env / "model.pt"
        lift = (*on_env, "--checkpoint", checkpoint, "--target", f"{env}/target/train{inside}",
                "--threshold", threshold, "--num", 4)
        run("synthesize", *lift, "--out", f"{env}/lifted")
        run("synthesize", *lift, "--refine", 4, *strong, "--out", f"{env}/refined")
        run("synthesize", *on_env, "--graphs", f"{env}/target-content/train/graphs.jsonl",
            "--num", 4, "--out", f"{env}/graphs")
        for split in ("all", "hard"):
            run("evaluate", "--checkpoint", checkpoint, "--data", f"{env}/target/test{inside}",
                "--split", split, "--out", f"{env}/evaluated")
    run("synthesize", "--env", "drive", "--preset", "paper", "--num", 1, "--out", "drive/native")
    run("synthesize", "--env", "clevr", "--preset", "paper", "--num", 2, "--out", "clevr/native")


def find(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files below the folder, relative to it, without pictures for people and checkpoints."""
    names = {path.relative_to(folder) for pattern in patterns for path in folder.rglob(pattern)}
    return sorted(name for name in names
                  if "figures" not in name.parts and name.parts[0] not in ("models", "train"))


def compare(before: Path, after: Path) -> list[str]:
    """The files of `before` that are missing in `after` or differ there."""
    names, gone = find(before, BYTES), set()
    wrong = [str(name) for name in names if not (after / name).is_file()
             or (before / name).read_bytes() != (after / name).read_bytes()]
    for name in find(before, RECORDS):
        old, new = (json.loads((folder / name).read_text()) if (folder / name).exists() else {}
                    for folder in (before, after))
        gone |= set(old) - set(new)
        wrong += [f"{name}: {key}: {value!r:.80}, not {new.get(key)!r:.80}"
                  for key, value in old.items()
                  if key not in FREE and key in new and new[key] != value]
    print(f"fields no longer written: {', '.join(sorted(gone)) or 'none'}")
    print(f"{len(names)} files compared, {len(wrong)} differ")
    return wrong


if __name__ == "__main__":
    command, first, second, *rest = sys.argv[1:]
    if command == "make":
        trained = Path(rest[0]).resolve() if rest else None
        make(Path(first).resolve(), Path(second).resolve(), trained)
    else:
        differing = compare(Path(first), Path(second))
        print("\n".join(differing[:20]))
        sys.exit(bool(differing))
