"""Installs the package `dilated_affinity` and its commands."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
COMMANDS = ("train_main", "eval_main", "predict_main", "export_main", "statistics_main")

setup(
    name="dilated_affinity",
    version=runpy.run_path(str(HERE / "dilated_affinity" / "version.py"))["__version__"],
    description="Sharper semantic segmentation in Keras by dilated affinity (arXiv 1907.07011)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["dilated_affinity", "dilated_affinity.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1,<3",
        "array_record>=0.8,<1; platform_system == 'Linux'",
        # tensorflow-datasets 4.9.10 imports it without requiring it.
        "importlib_resources>=6,<8",
        "keras>=3.15,<4",
        "matplotlib>=3.9,<4",
        "numpy>=2,<3",
        "opencv-python-headless>=4.10,<6",
        "pillow>=11,<14",
        "tensorflow>=2.21,<3",
        "tensorflow-datasets>=4.9.10,<5",
        "scipy>=1.14,<2",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "onnx": ["onnx>=1.17,<2", "onnxruntime>=1.20,<2", "tf2onnx>=1.17,<2"],
        "jax": ["jax>=0.10,<1"],
        "test": ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "ruff>=0.14,<1"],
    },
    entry_points={
        "console_scripts": [f"{name} = dilated_affinity.cli.{name}:main" for name in COMMANDS],
    },
)
