"""The work of evaluate.py: models x files x decodings x seeds, in units that are done once, and what comes of them."""

from minillm.common.lazy import lazily

_MODULES = {"run": ("evaluate", "run_suite"), "settings": ("Suite", "check_suite")}
__getattr__ = lazily(__name__, _MODULES)
__all__ = [name for names in _MODULES.values() for name in names]
