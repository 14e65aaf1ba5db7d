"""What a run is about to do, told before its first step; what cannot work has been refused by then."""

from minillm.train.preview.agreement import Agreement, agreement
from minillm.train.preview.begin import Comparison, begin
from minillm.train.preview.facts import Preflight, collect
from minillm.train.preview.memory import case_of, choose_sizes, estimate
from minillm.train.preview.page import show, write
from minillm.train.preview.sizes import AutoSizes
from minillm.train.preview.work import Work

__all__ = ["Agreement", "AutoSizes", "Comparison", "Preflight", "Work", "agreement", "begin", "case_of",
           "choose_sizes", "collect", "estimate", "show", "write"]  # fmt: skip
