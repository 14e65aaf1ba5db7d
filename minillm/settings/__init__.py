"""The settings of a training run as checked objects, and what loaded models, data and an earlier run must fit."""

from minillm.settings.settings import Settings, assemble, check_config, made_by

__all__ = ["Settings", "assemble", "check_config", "made_by"]
