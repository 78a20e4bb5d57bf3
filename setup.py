"""What pyproject.toml cannot say: every package below the three folders, however deep, is shipped.

setuptools finds packages by their folders, and ours have another name once they are installed:
`runtime/images` is `paligemma_edge.runtime.images`.
"""

from setuptools import find_packages, setup

FOLDERS = ("export", "quantize", "runtime")
found = find_packages(include=[pattern for name in FOLDERS for pattern in (name, f"{name}.*")])

setup(
    packages=[
        *(f"paligemma_edge.{name}" for name in found),
        "paligemma_edge.sample_images",
        "optimum.commands.register",  # a namespace of optimum's: no __init__.py may be there
    ],
    package_dir={
        **{f"paligemma_edge.{name}": name for name in FOLDERS},
        "paligemma_edge.sample_images": "samples/images",
        "optimum.commands.register": "export/optimum_register",
    },
)
