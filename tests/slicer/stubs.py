"""Type stubs of Slicer, made from slicer-core itself by VTK's own generator: ``python -m tests.slicer.stubs FOLDER``.

mypy then knows every method of the scene's nodes with its arguments. Widgets, whose classes are no part of slicer-core,
stay untyped.
"""

import importlib
import io
import re
import sys
from pathlib import Path

ANYTHING = "from typing import Any\ndef __getattr__(name: str) -> Any: ...\n"
VTK = "".join(f"from vtkmodules.{name} import *\n" for name in ("vtkCommonCore", "vtkCommonDataModel", "vtkCommonMath"))
UNTYPED = ("ScriptedLoadableModule", "parameterNodeWrapper", "util")
SLICER = """
from slicer import util as util
mrmlScene: vtkMRMLScene
app: Any
modules: Any
"""
BY_HAND = {
    "vtk.pyi": VTK,
    "slicer/i18n.pyi": "def tr(text: str) -> str: ...\ndef translate(context: str, text: str) -> str: ...\n",
    **dict.fromkeys(("qt.pyi", "ctk.pyi", "SampleData.pyi"), ANYTHING),
    **dict.fromkeys((f"slicer/{name}.pyi" for name in UNTYPED), ANYTHING),
}


def write_stubs(folder: Path) -> None:
    """Write the package ``slicer`` and the modules ``vtk``, ``qt`` and ``ctk``."""
    (folder / "slicer").mkdir(parents=True)
    for name, content in {**BY_HAND, "slicer/__init__.pyi": VTK + _core() + SLICER}.items():
        (folder / name).write_text(content, encoding="utf-8")


def _core() -> str:
    """All classes of slicer-core in one text: they name those of other modules without importing them."""
    import slicer_core
    from vtkmodules import generate_pyi

    push = generate_pyi.push_signature

    def mended(method: object, found: list[str], signature: str) -> None:
        # a number of C++ that the generator leaves as it is; and nodes whose class only a text names
        push(method, found, signature.replace("0.0f", "0.0").replace("-> vtkMRMLNode", "-> Any"))

    generate_pyi.push_signature = mended
    names = sorted({path.name.partition(".")[0] for path in Path(slicer_core.__file__).parent.glob("*.cpython-*.so")})
    written = io.StringIO()
    for name in names:
        generate_pyi.module_pyi(importlib.import_module(f"slicer_core.{name}"), written)
    return re.sub(r"^import slicer_core.*\n|\bslicer_core\.\w+\.", "", written.getvalue(), flags=re.MULTILINE)


if __name__ == "__main__":
    write_stubs(Path(sys.argv[1]))
