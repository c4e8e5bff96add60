"""The packages of a wheel: those of tubesynth/, and configs/, launch/ and models/ as data in it.

Everything else about the package is in setup.cfg.
"""

from setuptools import find_packages, setup

DATA_FOLDERS = {f"tubesynth.packaged.{name}": name for name in ("configs", "launch", "models")}

setup(
    packages=[*find_packages(include=["tubesynth*"]), *DATA_FOLDERS],
    package_dir=DATA_FOLDERS,
)
