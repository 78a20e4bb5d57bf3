"""What pyproject.toml cannot say: every package below the folders, however deep, is shipped.

setuptools finds packages by their folders, and ours have another name once they are installed:
`runtime/images` is `paligemma_edge.runtime.images`, and `package` is `paligemma_edge` itself, since
a folder of that name would be imported from the working directory in place of what is installed.
"""

from setuptools import find_packages, setup

FOLDERS = ("export", "quantize", "runtime")
found = find_packages(include=[pattern for name in FOLDERS for pattern in (name, f"{name}.*")])

setup(
    packages=[
        "paligemma_edge",
        *(f"paligemma_edge.{name}" for name in found),
        "paligemma_edge.sample_images",
        "optimum.commands.register",  # a namespace of optimum's: no __init__.py may be there
    ],
    package_dir={
        "paligemma_edge": "package",
        **{f"paligemma_edge.{name}": name for name in FOLDERS},
        "paligemma_edge.sample_images": "samples/images",
        "optimum.commands.register": "export/optimum_register",
    },
)
