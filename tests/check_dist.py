"""Build wheel and source archive into dist/, and try both: ``make dist``.

    python tests/check_dist.py PYTHON_WITH_BUILD_AND_TWINE

1. Both are built from a copy of what git knows, so that nothing else can get in.
2. The archive has every file of the copy, but for those that serve the repository alone. A wheel
   built from the archive is the one built from the copy, file by file.
3. ``twine check`` reads the metadata.
4. The wheel is installed into an environment that holds nothing else but what it depends on, in
   the versions of constraints.txt, and tests/smoke.py is run there, in an empty folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
OF_THE_REPOSITORY = (".ci/", ".github/", ".gitignore", "MANIFEST.in")
MADE = {"PKG-INFO", "setup.cfg", "MANIFEST.in"}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; the environment's paths to other packages are left out."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def say(text: str) -> None:
    print(f"dist: {text}", flush=True)


def copied(to: Path) -> set[str]:
    """The files that git knows, or would: copied, and their names."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name)
    return names


def built(python: str, source: Path, kinds: list[str], to: Path) -> list[Path]:
    run(python, "-m", "build", "--no-isolation", *kinds, "--outdir", to, source)
    return sorted(to.iterdir())


def unpacked(archive: Path, to: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(to, filter="data")
    (folder,) = to.iterdir()
    return folder


def contents(wheel: Path) -> dict[str, int]:
    """The files of a wheel with their checksums; RECORD repeats these."""
    with zipfile.ZipFile(wheel) as packed:
        return {i.filename: i.CRC for i in packed.infolist() if not i.filename.endswith("RECORD")}


def same(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        sys.exit(
            f"{what}: missing {sorted(expected - found)[:9]}, not expected "
            f"{sorted(found - expected)[:9]}"
        )


def main(python: str) -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        names = copied(work / "copy")
        wheel, archive = sorted(
            built(python, work / "copy", ["--sdist", "--wheel"], DIST),
            key=lambda p: p.suffixes[-1] != ".whl",
        )

        source = unpacked(archive, work / "archive")
        packed = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
        made = MADE | {name for name in packed if ".egg-info/" in name}
        wanted = {name for name in names if not name.startswith(OF_THE_REPOSITORY)}
        same("source archive", packed - made, wanted)
        say(f"{archive.name}: {len(packed)} files, {archive.stat().st_size / 2**20:.1f} MiB")

        modules = {n for n in names if n.startswith("sciml_snr/")}
        modules |= {f"sciml_snr/{n}" for n in names if n.startswith("problems/")}
        same("wheel", {n for n in contents(wheel) if ".dist-info/" not in n}, modules)
        say(f"{wheel.name}: {len(contents(wheel))} files, {wheel.stat().st_size / 2**20:.1f} MiB")

        (again,) = built(python, source, ["--wheel"], work / "again")
        if contents(again) != contents(wheel):
            sys.exit("The wheel from the source archive is another one than that from the tree.")
        say("the wheel from the source archive is the same")
        run(python, "-m", "twine", "check", "--strict", wheel, archive)
        say("twine check passed")

        venv.create(work / "env", with_pip=True)
        own = work / "env/bin/python"
        run(own, "-m", "pip", "install", "-q", "-c", "constraints.txt", wheel)
        (work / "empty").mkdir()
        shutil.copy(ROOT / "tests/smoke.py", work / "smoke.py")
        print(run(own, "-I", work / "smoke.py", cwd=work / "empty"), end="")
        say(f"both are good: {DIST.name}/{wheel.name}, {DIST.name}/{archive.name}")


if __name__ == "__main__":
    main(sys.argv[1])
