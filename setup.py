"""Packages to install: ``acefast`` with all below it, and the top-level ``kernels/`` as ``acefast.kernels``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["acefast", "acefast.*"]), "acefast.kernels"],
    package_dir={"acefast.kernels": "kernels"},
    package_data={"acefast": ["demo/**/*"]},
)
