"""The Jupyter kernel that runs the notebooks."""

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec


class ThisPython(AsyncKernelManager):
    """Starts the Python that runs this, the one that was made and pinned. By its name, "python3", Jupyter would take whichever kernel
    comes first on ``JUPYTER_PATH`` and in the user's folder."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())
