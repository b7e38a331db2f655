"""The project, its data and its packages in parts of bounded size, for machines without network.

A bundle is a folder: parts, ``manifest.json`` with a digest of each part and file, and
``unbundle.py``, which needs nothing but Python.
"""

# What images for training on GPUs bring along.
NODE_HAS = ("torch", "torchvision", "transformers", "numpy", "scipy", "pandas", "pyarrow",
            "seaborn", "matplotlib", "scikit-learn", "networkx", "safetensors", "tokenizers",
            "pytest", "rich", "tqdm")  # fmt: skip
