"""Do two checkouts of the project make the same bytes? For changes that should move code and no result.

    git worktree add /tmp/before REVISION
    python tests/same_bytes.py make /tmp/before /tmp/bytes_before [MODELS]
    python tests/same_bytes.py make .           /tmp/bytes_after  /tmp/bytes_before/models
    python tests/same_bytes.py compare /tmp/bytes_before /tmp/bytes_after

`make` runs one checkout's own command lines at toy size, all in one process: data sets of every environment and domain,
of `--graphs`, lifted with and without `--refine`, exported; predictions and metrics of the checkpoints in MODELS, which
the first call trains. `compare` prints every file that differs and ends with 1 if there is one.
"""
import importlib
import json
import os
import sys
from pathlib import Path

ENVS = {"clevr": 0.06, "dining": 0.3, "drive": 0.06}  # environment -> a threshold from which the toy checkpoints see objects
DOMAINS = ("target", "target-content", "target-appearance")
BYTES = ("*.png", "graphs.jsonl", "cameras.jsonl", "scenes.jsonl", "predicted.jsonl", "predictions.jsonl", "*.txt",
         "annotations.json")
# what may differ in the records beside them: options are spelled anew, paths differ, what is no longer written is left out
FREE = ("command", "checkpoint", "data", "target", "graphs", "seconds")


def make(checkout: Path, out: Path, models: Path | None) -> None:
    """Run the command lines of `checkout` and leave what they write in `out`."""
    sys.path.insert(0, str(checkout))
    import torch
    torch.set_num_threads(2)
    scripts = {name: importlib.import_module(name) for name in ("synthesize", "train", "evaluate")}
    randomize = "--randomize" if any(p.name == "randomize" for p in scripts["synthesize"].main.params) else "--randomise"

    def run(script: str, *arguments) -> None:
        print(script, *arguments, flush=True)
        scripts[script].main([*map(str, arguments), "-q"], standalone_mode=False)

    out.mkdir(parents=True, exist_ok=True)
    if models:  # the content gap is that of the data they learned from
        (out / "train").symlink_to(models.parent / "train")
    os.chdir(out)
    for env, threshold in ENVS.items():
        run("synthesize", "--env", env, "--num", 4, "--out", f"{env}/source")
        run("synthesize", "--env", env, "--num", 3, randomize, "strong", "--seed", 5, "--out", f"{env}/strong")
        for domain in DOMAINS:
            formats = "kitti,coco" if (env, domain) == ("drive", "target") else "coco"
            run("synthesize", "--env", env, "--domain", domain, "--num", 6, "--seed", 1, "--export", formats,
                "--out", f"{env}/{domain}")
        if models is None:
            run("synthesize", "--env", env, "--num", 60, "--seed", 7, "--out", f"train/{env}")
            run("train", "--source", f"train/{env}", "--steps", 120, "--out", f"models/{env}")
        checkpoint = (models or out / "models").resolve() / env / "model.pt"
        target = f"{env}/target/train" + ("/kitti" if env == "drive" else "")
        lift = ("--env", env, "--checkpoint", checkpoint, "--target", target, "--threshold", threshold, "--num", 4)
        run("synthesize", *lift, "--out", f"{env}/lifted")
        run("synthesize", *lift, "--refine", 4, randomize, "strong", "--out", f"{env}/refined")
        run("synthesize", "--env", env, "--graphs", f"{env}/target-content/train/graphs.jsonl", "--num", 4,
            "--out", f"{env}/graphs")
        for split in ("all", "hard"):
            run("evaluate", "--checkpoint", checkpoint, "--data", f"{env}/target/test" + target.removeprefix(f"{env}/target/train"),
                "--split", split, "--out", f"{env}/evaluated")
    run("synthesize", "--env", "drive", "--preset", "paper", "--num", 1, "--out", "drive/native")
    run("synthesize", "--env", "clevr", "--preset", "paper", "--num", 2, "--out", "clevr/native")


def compare(before: Path, after: Path) -> list[str]:
    """The files that `before` has and `after` has not, or with other content."""
    names = sorted({path.relative_to(before) for pattern in BYTES for path in before.rglob(pattern)
                    if not {"models", "figures"} & set(path.parts) and "train" not in path.relative_to(before).parts[:1]})
    wrong = [str(name) for name in names
             if not (after / name).is_file() or (before / name).read_bytes() != (after / name).read_bytes()]
    gone = set()
    for path in sorted([*before.rglob("dataset.json"), *before.rglob("metrics*.json"), *before.rglob("curves*.json")]):
        name = path.relative_to(before)
        if name.parts[0] in ("models", "train"):
            continue
        old, new = (json.loads((folder / name).read_text()) if (folder / name).exists() else {}
                    for folder in (before, after))
        gone |= set(old) - set(new)
        wrong += [f"{name}: {key}: {value!r:.80}, not {new.get(key)!r:.80}" for key, value in old.items()
                  if key not in FREE and key in new and new[key] != value]
    print(f"fields no longer written: {', '.join(sorted(gone)) or 'none'}")
    print(f"{len(names)} files compared, {len(wrong)} differ")
    return wrong


if __name__ == "__main__":
    command, first, second, *rest = sys.argv[1:]
    if command == "make":
        make(Path(first).resolve(), Path(second).resolve(), Path(rest[0]).resolve() if rest else None)
    else:
        differing = compare(Path(first), Path(second))
        print("\n".join(differing[:12]))
        sys.exit(bool(differing))
