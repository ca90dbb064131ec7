"""The package layout, which pyproject.toml cannot express.

``converters/`` is the package ``pylo_zoo.converters``. ``registry.yaml`` is copied to ``pylo_zoo/registry.yaml`` in a
wheel, and read in place in an editable install.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithRegistry(build_py):
    """``build_py`` that copies ``registry.yaml`` into the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("registry.yaml", str(Path(self.build_lib, "pylo_zoo", "registry.yaml")))


setup(
    packages=[*find_packages(include=["pylo_zoo", "pylo_zoo.*"]), "pylo_zoo.converters"],
    package_dir={"pylo_zoo.converters": "converters"},
    package_data={
        "pylo_zoo": ["py.typed", "samples/velo-sample/*", "experiments/compare/*.j2", "report/*.j2", "publish/*.j2"],
        "pylo_zoo.kernels.cpu": ["*.cpp", "*.h"],
    },
    cmdclass={"build_py": BuildWithRegistry},
)
