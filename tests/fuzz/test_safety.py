"""Nothing that a folder holds is run as code, nothing leads predict.py to unpickle, and keys stay out of what is kept.

The first half walks the syntax trees; the second lays pickles where a run keeps its arrays and weights, which write a
file if anybody loads them.
"""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ppo
import predict
import rank_train
import train
from core.errors import UserError
from jobs import active, calibrate, compare, ensemble
from tests.conftest import save_tiny, toy_rows, write_jsonl
from tests.fuzz.conftest import TINY
from tests.fuzz.strategies import contents, ends_well, workspace

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path
    for room in ("core", "losses", "archs", "data", "jobs", "bench")
    for path in sorted((ROOT / room).rglob("*.py"))
]
FILES += sorted(ROOT.glob("*.py"))
UNPICKLERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
LOADERS = {
    "read_pickle",
    "load_module",
    "unsafe_load",
    "full_load",
    "SourceFileLoader",
    "run_path",
    "run_module",
}


def dotted(node: ast.AST) -> str:
    """torch.load of its syntax tree."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def unsafe(source: str) -> list[str]:
    """What in a file could run what another file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        name, given = dotted(node.func), {word.arg: word.value for word in node.keywords}
        last = name.split(".")[-1]
        told = f"line {node.lineno}: {name}"

        def says(word: str, value: bool, given: dict = given) -> bool:
            return isinstance(given.get(word), ast.Constant) and given[word].value is value

        if isinstance(node.func, ast.Name) and name in BUILTINS:
            found.append(told)
        if name in ("os.system", "os.popen") or last in LOADERS:
            found.append(told)
        if name == "yaml.load" or (last == "load" and "pickle" in name.lower()):
            found.append(told)
        if name in ("torch.load", "torch.serialization.load") and not says("weights_only", True):
            found.append(f"{told} without weights_only=True")
        if "allow_pickle" in given and not says("allow_pickle", False):
            found.append(f"{told} with allow_pickle")
        if "trust_remote_code" in given and not says("trust_remote_code", False):
            found.append(f"{told} with trust_remote_code")
        if "shell" in given and not says("shell", False):
            found.append(f"{told} with shell")
        if "weights_only" in given and not says("weights_only", True):
            found.append(f"{told} with weights_only")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_run(path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from joblib import load",
            "import dill as d",
            "eval(x)",
            "exec('a = 1')",
            "os.system(x)",
        ),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)"),
        *("AutoModel.from_pretrained(name, trust_remote_code=True)", "f(trust_remote_code=args.trust)"),
        *("yaml.load(text)", "pd.read_pickle(path)", "subprocess.run(line, shell=True)", "pickle.load(file)"),
    ],
)
def test_bite_unsafe(line):
    assert unsafe(line)


@pytest.mark.parametrize(
    "line",
    [
        *(
            "model.eval()",
            "json.load(f)",
            "re.compile(x)",
            "torch.compile(m)",
            "torch.load(path, weights_only=True)",
        ),
        *(
            "np.load(path)",
            "np.load(path, allow_pickle=False)",
            "f(trust_remote_code=False)",
            "subprocess.run([a])",
        ),
    ],
)
def test_what_is_safe_passes(line):
    assert unsafe(line) == []


# -- pickles in a run folder ------------------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_the_bomb_goes_off(tmp_path):
    """Else the tests below would prove nothing."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").exists()


def bombs(path: Path) -> dict[str, bytes]:
    """The ways to wrap a pickle: bare, in an array of objects, in a .bin of torch."""
    bare = pickle.dumps(Bomb(path))
    with workspace() as folder:
        np.save(folder / "a.npy", np.array([Bomb(path)], dtype=object), allow_pickle=True)
        torch.save({"weight": Bomb(path)}, folder / "a.bin")
        return {
            "bare": bare,
            "array": (folder / "a.npy").read_bytes(),
            "torch": (folder / "a.bin").read_bytes(),
        }


TARGETS = (
    "validation/logits.npy",
    "test/logits.npy",
    "rows/train.npy",
    "rows/test.npy",
    "rows/validation.npy",
    "best_model/model.safetensors",
    "best_model/bareloop.json",
    "best_model/tokenizer.json",
    "validation/calibration.json",
    "run.json",
    "training_logs.jsonl",
)


@pytest.mark.parametrize("target", TARGETS)
def test_no_file_of_a_run_is_unpickled(places, target):
    kind = {".npy": "array", ".safetensors": "torch"}.get(Path(target).suffix, "bare")
    with workspace() as folder:
        shutil.copytree(
            places["one"], folder / "run", ignore=shutil.ignore_patterns("checkpoint", "final_model", "*.png")
        )
        (folder / "run" / target).write_bytes(bombs(folder / "boom")[kind])
        pool, scores = str(places["pool"]), target.startswith(("test", "run.json", "training_logs"))
        commands = [
            (predict.main, ["run", "--data", pool, "--output", "out.jsonl"]),
            (
                active.main,
                ["select", "run", "--data", pool, "--output", "to.jsonl", "--acquisition", "margin"],
            ),
            (compare.main, ["--table_only", "run", str(places["two"]), "--output_dir", "out"])
            if scores
            else (calibrate.main, ["run", "--resamples", "100"]),
        ]
        for main, argv in commands:
            ends_well(main, argv, folder, ("run", "out"))
        assert not (folder / "boom").exists()


@pytest.mark.parametrize("where", ["model", "base of an adapter", "member", "stacking"])
@pytest.mark.parametrize("kind", ["bare", "torch"])
def test_no_path_out_of_a_run_leads_to_unpickling(places, where, kind):
    """A .bin of weights is read with weights_only=True wherever a run says that it is, outside the run's folder too."""
    with workspace() as folder:
        evil = folder / "evil"
        bomb = bombs(folder / "boom")
        save_tiny(evil)
        (evil / "model.safetensors").unlink()
        (evil / "pytorch_model.bin").write_bytes(bomb[kind])
        name = "lora" if where == "base of an adapter" else "one"
        shutil.copytree(places[name], folder / "one")
        about = folder / "one" / "best_model" / "bareloop.json"
        if where == "base of an adapter":
            found = json.loads(about.read_text())
            about.write_text(json.dumps(found | {"model_name": str(evil), "base_model": "../evil"}))
        elif where == "stacking":
            (folder / "one" / "best_model" / "model.safetensors").rename(folder / "kept")
            (folder / "kept").rename(folder / "one" / "best_model" / "model.safetensors")
        else:
            (folder / "one" / "best_model" / "model.safetensors").unlink()
            (folder / "one" / "best_model" / "pytorch_model.bin").write_bytes(bomb[kind])
        run = "one"
        if where in ("member", "stacking"):
            shutil.copytree(places["two"], folder / "two")
            made = folder / "deep" / "ensemble"
            made.mkdir(parents=True)
            members = []
            for member in ("one", "two"):
                from core.rows import file_sha256

                sha256 = file_sha256(folder / member / "validation" / "logits.npy")
                members.append({"run": f"../../{member}", "weight": 0.5, "scores_sha256": sha256})
            record = json.loads((folder / "one" / "run.json").read_text())
            how = "stacking" if where == "stacking" else "mean"
            (made / "run.json").write_text(
                json.dumps(record | {"ensemble": {"method": how, "members": members}})
            )
            (made / "stacking.npy").write_bytes(bomb[kind])
            run = str(made)
        ended = ends_well(predict.main, [run, "--data", str(places["pool"]), "--output", "out.jsonl"], folder)
        assert ended.is_error
        assert not (folder / "boom").exists()


def test_remote_code_of_a_model_folder_is_not_run(places):
    """A config.json that names a Python file beside it: refused or passed over, never run."""
    with workspace() as folder:
        shutil.copytree(places["model"], folder / "model")
        code = f"import os\nos.mkdir({str(folder / 'boom')!r})\n"
        (folder / "model" / "evil.py").write_text(code)
        config = json.loads((folder / "model" / "config.json").read_text())
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
        (folder / "model" / "config.json").write_text(json.dumps(config))
        argv = [*TINY, "--model_name", str(folder / "model"), "--output_dir", "run", "--cache_dir", "cache"]
        argv += ["--train_data", str(places["train"]), "--val_data", str(places["val"])]
        assert ends_well(train.main, argv, folder).is_error
        assert not (folder / "boom").exists()


# -- keys -------------------------------------------------------------------------------------------------------

# made of parts, so that no scanner takes this file for a leak
KEYS = [
    "sk-" + "proj-" + "aB3dE5fG7hI9jK1lM3nO5pQ7",
    "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567",
    "AKIA" + "ABCDEFGHIJ012345",
]
KEYS += ["ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:4])
@pytest.mark.parametrize("main", [train.main, rank_train.main, ppo.main], ids=["train", "rank_train", "ppo"])
@pytest.mark.parametrize(
    "how", ["--metric={}", "--cache_dir={}", "--train_data=https://user:{}@host/x", "--api_key={}"]
)
def test_a_key_on_the_command_line_is_refused_and_not_repeated(places, main, how, key):
    rows = "rank_" if main is not train.main else ""
    argv = [*TINY[:2], "--train_data", str(places[f"{rows}train"]), "--val_data", str(places[f"{rows}val"])]
    argv += ["--policy", str(places["rank"])] if main is ppo.main else ["--model_name", str(places["model"])]
    with workspace() as folder:
        ended = ends_well(main, [*argv, "--output_dir", "run", how.format(key)], folder)
        assert ended.is_error
        assert key not in ended.message
        assert list(folder.iterdir()) == []


def test_what_is_no_key_is_let_through(places):
    for word in ("sk-learn-baseline-of-last-week", "hf_models", "runs/sk-12", "task-a1B2", "x" * 60):
        train.parse_args(
            [
                "--train_data",
                str(places["train"]),
                "--val_data",
                str(places["val"]),
                "--output_dir",
                f"{word}_new",
            ]
        )


def test_keys_of_the_environment_reach_no_file(places, monkeypatch, capfd):
    names = ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY")
    for name, key in zip(names, KEYS, strict=True):
        monkeypatch.setenv(name, key)
    with workspace() as folder:
        write_jsonl(folder / "train.jsonl", toy_rows(40))
        argv = [*TINY, "--model_name", str(places["model"]), "--train_data", str(folder / "train.jsonl")]
        argv += [
            "--val_data",
            str(places["val"]),
            "--output_dir",
            str(folder / "run"),
            "--cache_dir",
            str(folder / "cache"),
        ]
        train.main(argv)
        ensemble.main(
            [
                str(folder / "run"),
                str(places["one"]),
                "--output_dir",
                str(folder / "both"),
                "--method",
                "mean",
            ]
        )
        kept = b"".join(contents(folder).values()) + "".join(capfd.readouterr()).encode()
    assert b'"arguments"' in kept
    assert not [key for key in KEYS if key.encode() in kept]


def test_a_stored_key_is_not_repeated_on_resume(places):
    """A run of an older version may have one in its run.json."""
    with workspace() as folder:
        (folder / "run").mkdir()
        arguments = {"metric": KEYS[0], "train_data": "x"}
        (folder / "run" / "run.json").write_text(json.dumps({"status": "running", "arguments": arguments}))
        with pytest.raises(UserError) as refused:
            train.main(["--resume", str(folder / "run"), "--metric", "accuracy"])
        assert KEYS[0] not in str(refused.value)
