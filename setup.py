"""The packages of a wheel: those of tubesynth/, and configs/ and launch/ as folders of data in it.

Everything else about the package is in setup.cfg.
"""

from setuptools import find_packages, setup

DATA_FOLDERS = {"tubesynth.packaged.configs": "configs", "tubesynth.packaged.launch": "launch"}

setup(
    packages=[*find_packages(include=["tubesynth*"]), *DATA_FOLDERS],
    package_dir=DATA_FOLDERS,
)
