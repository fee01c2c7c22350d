"""Installs the package `dilated_affinity` and its commands."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
COMMANDS = sorted(path.stem for path in (HERE / "dilated_affinity" / "cli").glob("*_main.py"))

CRF = ["pydensecrf2>=1.1,<2"]
DOCS = ["furo>=2024.8.6", "myst-parser>=4,<6", "sphinx>=8.1,<10"]
# SciPy's reader of MATLAB files is not used: see datasets/voc2012_aug/matlab_files.py.
EXPERIMENTS = ["scipy>=1.14,<2"]
NOTEBOOK = ["ipykernel>=6.29,<8", "ipywidgets>=8,<9"]
TENSORBOARD = ["tensorboard>=2.19,<3"]
TENSORFLOW = ">=2.21,<3"

setup(
    name="dilated_affinity",
    version=runpy.run_path(str(HERE / "dilated_affinity" / "version.py"))["__version__"],
    description="Sharper semantic segmentation in Keras by dilated affinity (arXiv 1907.07011)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    project_urls={"Paper": "https://arxiv.org/abs/1907.07011"},
    keywords="semantic segmentation, dilated affinity, DeepLabv3+, Keras, TensorFlow, JAX",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["dilated_affinity", "dilated_affinity.*"]),
    package_data={"dilated_affinity.report": ["page.html", "page.css", "page.js"]},
    # TensorFlow has no wheels for later ones.
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py>=2.1,<3",
        "array_record>=0.8,<1; platform_system == 'Linux'",
        # tensorflow-datasets 4.9.10 imports it without requiring it.
        "importlib_resources>=6,<8",
        "keras>=3.15,<4",
        "matplotlib>=3.9,<4",
        "numpy>=2,<3",
        "opencv-python-headless>=4.10,<6",
        "packaging>=23,<27",
        "pillow>=11,<14",
        f"tensorflow{TENSORFLOW}",
        "tensorflow-datasets>=4.9.10,<5",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "gpu": [f"tensorflow[and-cuda]{TENSORFLOW}"],
        "onnx": ["onnx>=1.17,<2", "onnxruntime>=1.20,<2", "tf2onnx>=1.17,<2"],
        "jax": ["jax>=0.10,<1"],
        "crf": CRF,
        "tensorboard": TENSORBOARD,
        "notebook": NOTEBOOK,
        "docs": DOCS,
        "experiments": EXPERIMENTS,
        "benchmarks": [*CRF, "keras-hub>=0.32,<1"],
        "test": [
            *DOCS,
            *EXPERIMENTS,
            *NOTEBOOK,
            *TENSORBOARD,
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.14,<1",
            "selenium>=4.20,<5",
        ],
    },
    entry_points={
        "console_scripts": [f"{name} = dilated_affinity.cli.{name}:main" for name in COMMANDS],
    },
)
