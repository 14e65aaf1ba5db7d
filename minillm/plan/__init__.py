"""What a run needs, from tensors without data: memory of a device, what fits, how long it takes."""

from minillm.plan.case import Case
from minillm.plan.memory import Device, Memory, fake_device, largest, measure
from minillm.plan.networks import Blueprint, Sizes, configs
from minillm.plan.sizes import CPU, AutoSizes, choose, left_open, measure_chosen
from minillm.plan.speed import Rates, Speed, speed

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
