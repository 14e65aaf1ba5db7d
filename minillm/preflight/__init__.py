"""What a run is about to do, told before its first step; what cannot work has been refused by then."""

from minillm.preflight.agreement import Agreement, agreement
from minillm.preflight.begin import Comparison, begin
from minillm.preflight.facts import Preflight, collect
from minillm.preflight.memory import case_of, choose_sizes, estimate
from minillm.preflight.page import show, write
from minillm.preflight.work import Work

__all__ = ["Agreement", "Comparison", "Preflight", "Work", "agreement", "begin", "case_of", "choose_sizes", "collect",
           "estimate", "show", "write"]  # fmt: skip
