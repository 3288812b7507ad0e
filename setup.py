"""Build entry: metadata lives in pyproject.toml; the compiled extensions will be declared here."""

from setuptools import setup

setup()
