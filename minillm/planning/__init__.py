"""What a run needs, from tensors without data: memory of a device, what fits, how long it takes."""

from minillm.planning.case import Case
from minillm.planning.memory import Device, Memory, fake_device, largest, measure
from minillm.planning.networks import Blueprint, Sizes, configs
from minillm.planning.sizes import CPU, AutoSizes, choose, left_open, measure_chosen
from minillm.planning.speed import Rates, Speed, speed

__all__ = [
    "CPU",
    "AutoSizes",
    "Blueprint",
    "Case",
    "Device",
    "Memory",
    "Rates",
    "Sizes",
    "Speed",
    "choose",
    "configs",
    "fake_device",
    "largest",
    "left_open",
    "measure",
    "measure_chosen",
    "speed",
]
