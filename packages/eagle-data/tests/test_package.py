"""The package's front: light to import, and every public name is there."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import eagle_data
import pytest
from eagle_data.errors import MediaError, MissingMediaError, SampleError


def test_importing_the_package_imports_no_library():
    code = (
        "import sys; before = set(sys.modules); import eagle_data; new = set(sys.modules) - before; "
        "print({name.split('.')[0] for name in new} - sys.stdlib_module_names)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "{'eagle_data'}"


def test_the_core_needs_no_torch():
    modules = [path.stem for path in Path(eagle_data.__file__).parent.glob("*.py")]
    code = f"import sys\nfor m in {modules}:\n    __import__('eagle_data.' + m)\nprint('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"


def test_every_public_name_is_found_and_none_is_also_a_module():
    modules = {path.stem for path in Path(eagle_data.__file__).parent.glob("*.py")}
    for name in eagle_data.__all__:
        assert getattr(eagle_data, name) is not None
        assert name in dir(eagle_data)
        assert name not in modules


def test_public_names_are_the_objects_of_their_modules():
    assert eagle_data.plan is import_module("eagle_data.ads").plan
    assert eagle_data.StatefulLoader is import_module("eagle_data.loader").StatefulLoader


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eagle_data.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "error",
    [SampleError("a:1", "is bad", "bad turn"), MediaError("a.png", "is bad", "Mend it"), MissingMediaError("a", "b", "c")],
)
def test_errors_survive_pickling_with_their_kind(error: SampleError | MediaError):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.kind) == (str(error), error.kind)
