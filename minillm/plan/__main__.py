"""python -m minillm.plan: see conf/plan.yaml."""

from minillm.common import cli
from minillm.plan.command import main

cli.run(main, "plan")
