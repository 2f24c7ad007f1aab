"""What the families on images share: the fields of a Config that the images determine, and the task."""

from __future__ import annotations

from typing import Any

from scalebench.data.images import Images
from scalebench.study import Batching, DataSpec
from scalebench.tasks import Classification, classification


def image_fields(data: Images, _sequence_length: int | None) -> dict[str, Any]:
    """Return the fields that the images determine; images below 32 pixels are enlarged to 32."""
    return {"image_size": max(32, data.size), "channels": data.channels, "classes": data.classes}


def image_classes(config: Any, data: Images, spec: DataSpec, train: Batching) -> Classification:
    """Return classification of the images, for a Config with ``image_size``, ``channels`` and ``classes``."""
    return classification(data, config.image_size, spec, train, channels=config.channels, classes=config.classes)
