"""Makes `import torchvision` work beside a torch without CUDA; timm and segmentation_models_pytorch need the import.

The wheel of torchvision on PyPI is compiled for CUDA. Its operators do not load here, and the import ends where it
describes nms and qnms to torch. Declared before, they can be described. No network of the tests and studies calls them.
"""

import importlib.util

import torch

_DECLARED: list[torch.library.Library] = []  # a library's declarations end with the object


def declare() -> None:
    """Declares the operators whose absence ends the import. Does nothing where torchvision works or is absent."""
    if _DECLARED or torch.version.cuda is not None or importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        library.define(schema)
    _DECLARED.append(library)
