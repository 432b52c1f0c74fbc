"""The package's face: every public name is there, and looking at it loads no more than asked for."""

import subprocess
import sys
import time

import eagle_parallel
import pytest

HEAVY = "{'torch', 'numpy', 'transformers', 'deepspeed', 'hypothesis'}"


def _python(code, *arguments):
    run = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_public_name_is_found_and_listed():
    assert sorted(set(eagle_parallel.__all__)) == sorted(eagle_parallel.__all__)
    for name in eagle_parallel.__all__:
        assert getattr(eagle_parallel, name).__name__ == name
        assert name in dir(eagle_parallel)
    assert set(eagle_parallel.__all__) == set(eagle_parallel._MODULE_OF)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'shard_batches'"):
        eagle_parallel.shard_batches  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_names_stay_callable_after_their_modules_are_imported():
    """A submodule that is called as a function is would hide it."""
    code = """
import pkgutil, eagle_parallel
for module in pkgutil.walk_packages(eagle_parallel.__path__, "eagle_parallel."):
    __import__(module.name)
print([name for name in eagle_parallel.__all__ if not callable(getattr(eagle_parallel, name))])
"""
    assert _python(code) == "[]\n"


def test_the_import_loads_no_torch_and_the_model_names_no_transformers_or_deepspeed():
    code = f"import sys, eagle_parallel; print({HEAVY} & set(sys.modules)); "
    code += "from eagle_parallel import *; print({'transformers', 'deepspeed'} & set(sys.modules))"
    assert _python(code) == "set()\nset()\n"


@pytest.mark.parametrize("arguments", ["plan --help", "plan --model qwen2.5-7b --context 128K --gpus 4096 --documents sft"])
def test_the_planner_command_answers_in_seconds_and_without_torch(arguments):
    """0.13 s and 0.2 s on a machine that has nothing else to do; importing torch alone takes longer than the first."""
    code = f"""
import sys
sys.argv[0] = "eagle-parallel"
from eagle_parallel.planner.cli import main
try:
    main()
except SystemExit:
    pass
assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)
"""
    start = time.perf_counter()
    assert "gpus" in _python(code, *arguments.split()).lower()
    assert time.perf_counter() - start < 5
