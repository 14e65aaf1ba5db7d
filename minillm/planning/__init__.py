"""What a run needs, from tensors without data: memory of a device, what fits, how long it takes."""

from minillm.planning.case import Case
from minillm.planning.memory import Device, Memory, fake_device, largest, measure
from minillm.planning.networks import Blueprint, Sizes, architectures
from minillm.planning.speed import Rates, Speed, speed

__all__ = [
    "Blueprint",
    "CPU",
    "AutoSizes",
    "Case",
    "Device",
    "Memory",
    "Rates",
    "Sizes",
    "Speed",
    "architectures",
    "fake_device",
    "largest",
    "measure",
    "speed",
    "left_open",
]
