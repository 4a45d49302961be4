"""Loaded by every Python of the pods that have this folder on their PYTHONPATH: faults on demand, and less weight.

``LIFECYCLE_RECIPE=torch-free`` puts ``torch_free_recipe.py`` in the place of the recipe, so that a gang starts within a
second; launcher, worker, watchdog, signals, heartbeats and store are the real ones. Otherwise the real recipe runs, and
asks ``faults.py`` before each of its steps.
"""

import importlib.util
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path

_HERE = Path(__file__).parent
_RECIPE = "finetune_trainer.recipe"


class _Recipes(MetaPathFinder):
    """Finds the recipe in our folder, or has the real one ask for faults."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != _RECIPE:
            return None
        if os.environ.get("LIFECYCLE_RECIPE") == "torch-free":
            return importlib.util.spec_from_file_location(name, _HERE / "torch_free_recipe.py")
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            spec.loader = _Asking(spec.loader)  # type: ignore[no-untyped-call]
        return spec


class _Asking(Loader):
    """Executes the real module, then wraps its step."""

    def __init__(self, real):  # type: ignore[no-untyped-def]
        self._real = real

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        return self._real.create_module(spec)

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        self._real.exec_module(module)
        import faults  # type: ignore[import-not-found]

        train_step = module.Recipe._train_step

        def ask_and_train(self):  # type: ignore[no-untyped-def]
            faults.come_to(self.config, self.world.rank, self.step, self.stop, self.watchdog)
            train_step(self)

        module.Recipe._train_step = ask_and_train


sys.meta_path.insert(0, _Recipes())
