"""Installs batchverify; also what Beam stages to remote workers (`--setup_file`)."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
version: dict[str, str] = {}
exec((HERE / "batchverify" / "version.py").read_text(encoding="utf-8"), version)

TEST = [
    "apache-beam[aws,gcp]>=2.77,<2.80",
    "duckdb>=2.0,<3",
    "gcp-storage-emulator>=2026.7,<2027",
    "hypothesis>=6.130,<7",
    "huggingface_hub>=1.33,<2",
    "import-linter>=2.5,<3",
    "ipykernel>=6.29,<8",
    "kubernetes-validate>=1.35,<2",
    "mlflow-skinny>=3.17,<4",
    "moto[server]>=5.2,<6",
    "nbclient>=0.10,<1",
    "onnx>=1.19,<2",
    "onnxruntime>=1.24,<2",
    "opencv-python-headless>=4.10,<6",
    "openvino>=2026.2,<2027",
    "opentelemetry-sdk>=1.27,<2",
    "pillow-heif>=1.0,<2",
    "polars>=1.30,<2",
    "prometheus-client>=0.22,<1",
    "pytest>=9.0,<10",
    "pytest-xdist>=3.8,<4",
    "scikit-image>=0.25,<0.27",
    "scikit-learn>=1.7,<2",
    "scipy>=1.15,<2",
    "selenium>=4.30,<5",
    "setuptools>=77,<82",  # It builds the sdist. Later versions lack pkg_resources, which tensorflow-hub needs.
    "shtab>=1.7,<2",
    "tensorflow-hub>=0.16,<0.17",  # Beam's handler for TensorFlow imports it.
    "tf-keras>=2.20,<3",
    "tqdm>=4.66,<5",
]
# What Beam YAML imports. Its own extra asks for pandas 2 as well, for transforms that read CSV and JSON files.
YAML = ["docstring-parser>=0.15,<1", "jsonschema>=4,<5"]
DOCS = ["mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1.0,<2"]

setup(
    name="batchverify",
    version=version["VERSION"],
    description="Batch verification of image pairs with a trained Siamese network, in Apache Beam",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["batchverify", "batchverify.*"]),
    package_data={
        "batchverify": ["py.typed"],
        "batchverify.report": ["*.html.j2", "style.css"],
        "batchverify.demo": ["*.keras", "*.json", "*.md"],
    },
    install_requires=[
        "apache-beam>=2.77,<2.80",
        "h5py>=3.11,<4",
        "jinja2>=3.1.6,<4",
        "keras>=3.15,<4",
        "matplotlib>=3.10,<4",
        "numpy>=2.0,<3",
        "pandas>=3.0,<4",
        "pillow>=12.0,<14",
        "pyarrow>=23,<27",
        "rich>=14,<16",
        "tensorflow>=2.20,<3",
    ],
    entry_points={"console_scripts": ["batchverify = batchverify.cli.main:run_as_process"]},
    extras_require={
        "aws": ["apache-beam[aws]>=2.77,<2.80"],
        "bench": [
            "py-spy>=0.4,<0.5",
            "pyspark>=4.0,<5",
            "ray[data]>=2.50,<3",
            "setuptools>=77,<82",
            "tensorflow-hub>=0.16,<0.17",
        ],
        "calibration": ["scikit-learn>=1.7,<2"],
        "completion": ["shtab>=1.7,<2"],
        "metrics": ["prometheus-client>=0.22,<1"],
        "opencv": ["opencv-python-headless>=4.10,<6"],
        "skimage": ["scikit-image>=0.25,<0.27"],
        "openvino": ["openvino>=2026.2,<2027"],
        "onnx": ["onnxruntime>=1.24,<2"],  # Earlier versions read weights from any file of the machine.
        "huggingface": ["huggingface_hub>=1.33,<2"],
        "mlflow": ["mlflow-skinny>=3.17,<4"],
        "heif": ["pillow-heif>=1.0,<2"],
        "yaml": YAML,
        "gcp": ["apache-beam[gcp]>=2.77,<2.80"],
        "tracing": ["opentelemetry-api>=1.27,<2"],
        "test": [*TEST, *YAML],
        "docs": DOCS,
        "dev": [
            *TEST,
            *YAML,
            *DOCS,
            "mypy>=2.0,<3",
            "pre-commit>=4.0,<5",
            "pytest-cov>=7.0,<8",
            "ruff>=0.17,<0.18",
        ],
    },
)
