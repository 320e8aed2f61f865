"""Islands: what stays in float32 where the rest of a network is computed in fewer bits, marked as OpenVINO does it.

OpenVINO takes one precision for a whole network. It has a mark for operators that keep theirs, which its Python
interface cannot set; but it reads it from the XML form of a network. So the network without its weights is written as
XML, marked here, and read back.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

__all__ = ["ISLANDS", "mark"]

ISLANDS = "*"
"""In `PrecisionPlan.keep_fp32`: everything but products (of matrices, convolutions) is computed in float32."""

_FREE = frozenset(
    {"MatMul", "Convolution", "ConvolutionBackpropData", "GroupConvolution", "Const", "Parameter", "Result"}
)


def mark(text: bytes) -> bytes:
    """The XML of a network, with every operator but products marked to keep its precision."""
    root = ElementTree.fromstring(text)
    for layer in root.iter("layer"):
        if layer.get("type") in _FREE:
            continue
        info = layer.find("rt_info")
        if info is None:
            info = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, info)
        # "precise" is the mark's name in every version; the value is read since 2026.
        ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0", "value": "dynamic:f16"})
    return bytes(ElementTree.tostring(root))
