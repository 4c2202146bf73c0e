"""Import open_clip in half the time; with this folder on PYTHONPATH, Python does so at its start.

open_clip imports timm, whose models no test uses, and torchvision, whose roi_align imports torch's compiler for one
function that only its callers need. Both together are 4 of 8 seconds of processor time for every worker that a test
starts. What runs without this folder: the demo, bench, and the programs that tests start outside an Installation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

COMPILER = ("torch._dynamo", "torch._dynamo.utils")


class FastImports:
    """A finder on sys.meta_path: no timm, and torchvision.ops.roi_align without the compiler."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "timm":
            raise ModuleNotFoundError("timm is left out to start faster", name=name)
        if name != "torchvision.ops.roi_align" or COMPILER[0] in sys.modules:
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_without_compiler(module: ModuleType) -> None:
            """Stand-ins while the module is imported, so that a later import finds the compiler itself."""
            sys.modules.update((stand_in, ModuleType(stand_in)) for stand_in in COMPILER)
            sys.modules[COMPILER[1]].is_compile_supported = lambda device: False
            try:
                execute(module)
            finally:
                for stand_in in COMPILER:
                    del sys.modules[stand_in]

        spec.loader.exec_module = execute_without_compiler
        return spec


sys.meta_path.insert(0, FastImports)
