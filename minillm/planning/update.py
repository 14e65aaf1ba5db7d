"""The memory of an update: the package's own losses and models run on tensors without data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from minillm.common.types import Rollout
from minillm.models import LanguageModel
from minillm.objectives.linear_loss import Side
from minillm.parallel import DeviceMesh
from minillm.planning.case import Case
from minillm.planning.ledger import Ledger
from minillm.planning.networks import Sizes, local_bytes, parameters, precision
from minillm.rollout import prepared
from minillm.rollout.micro_batch import MicroBatch

STATES = "teacher's states"


class FakeUpdate:
    """One rank's models and optimizer, sharded as the case says; made under FakeTensorMode.

    One micro-batch of answers and one of the corpus stand for all. AdamW's moments are there, and the gradients too
    where a micro-batch came before. Clipping and the fused step take no memory to speak of.
    """

    def __init__(self, case: Case, mesh: DeviceMesh | None):
        self.case = case
        network = case.student.make(trained=True)
        rows = [network.get_output_embeddings().weight.shape[0]]
        teacher = None if case.teacher is None else case.teacher.make(trained=False)
        if teacher is not None:
            rows.append(teacher.get_output_embeddings().weight.shape[0])
        self.n_vocab = min(rows)
        self.sizes = {"student": Sizes.of(network, case.student)}
        if teacher is not None:
            self.sizes["teacher"] = Sizes.of(teacher, case.teacher)
        self.student, self.constants = LanguageModel(network, self.n_vocab), _constants(case)
        self.teacher = None if teacher is None else LanguageModel(teacher, self.n_vocab)
        if mesh is not None:  # as the training module does it
            parts = dict(mesh=mesh, cpu_offload=False, half=case.half)
            self.student.share_out(keep_head=False, **parts)
            if teacher is not None:
                self.teacher.share_out(keep_head=True, **parts)
        self.trained = parameters(network, trained=True)
        self.ledger, self.optimizers = Ledger(), []
        self._settle()

    def _settle(self) -> None:
        """Make and count what is there before the first micro-batch: weights, moments, the teacher's states."""
        case, ledger, network = self.case, self.ledger, self.student.network
        with ledger, ledger.purpose("optimizer"):
            ledger.claim(network.parameters(), "student")
            for each in self.trained:  # an optimizer each: some are sharded over two dimensions, some over one
                optimizer = case.optim.build([each])
                each.grad = torch.zeros_like(each)
                optimizer.step()
                each.grad = None
                self.optimizers.append(optimizer)
        self.moments = ledger.live["optimizer"]
        if self.teacher is not None:
            with ledger:
                ledger.claim(self.teacher.network.parameters(), "teacher")
            if case.offload and case.rollouts:
                ledger.add("teacher", -local_bytes(self.teacher.body()))
            ledger.add(STATES, case.states * case.state_dtype.itemsize)

    def peak(self, rows: int) -> dict[str, int]:
        """Bytes by purpose at the peak of an update whose micro-batches of answers have `rows` rows."""
        case, ledger = self.case, self.ledger
        with ledger, precision(case.half):
            ledger.restart()
            before, late = rows < case.local_minibatch, case.layout.reduce == "step"
            if before and not late:
                with ledger.purpose("gradients"):
                    for each in self.trained:
                        each.grad = torch.zeros_like(each)
            passes = [partial(self._answers, rows)] * (1 + (before and late))
            if blocks := case.blocks(rows):
                passes.append(partial(self._corpus, blocks))
            for number, each in enumerate(passes, 1):
                if late:
                    self.student.reduce_gradients(number == len(passes))
                each()
            for each in self.trained:
                each.grad = None
        return {name: size for name, size in ledger.peak.items() if size}

    def _answers(self, rows: int) -> None:
        case = self.case
        ids_BP = torch.zeros(rows, case.prompt, dtype=torch.long)
        ids_BR = torch.zeros(rows, case.answer, dtype=torch.long)
        states = torch.arange(rows * case.columns).view(rows, case.columns)[:, case.prompt - 1 :].reshape(-1)
        tokens = torch.arange(rows * case.answer)
        rollout = Rollout(ids_BP, ids_BP.bool(), ids_BR, ids_BR.bool(), *torch.zeros(2, rows, case.answer))
        ids_BS = torch.cat([ids_BP, ids_BR], dim=1)[:, :-1].contiguous()
        micro = MicroBatch(rollout, torch.arange(rows), ids_BS, states, tokens)
        teacher = None
        with torch.no_grad(), self.ledger.purpose("teacher's pass"):
            if case.objective.needs and case.states:
                hidden_NH = torch.zeros(len(micro), case.teacher.width, dtype=case.state_dtype)
                teacher = Side(hidden_NH, self.teacher.head())
            elif case.objective.needs:
                teacher = micro.side(self.teacher)
        constants = {name: torch.zeros(len(micro)) for name in self.constants}
        self._pass(case.objective, lambda: micro.side(self.student), teacher, micro.take(ids_BR), constants)

    def _corpus(self, blocks: int) -> None:
        ids_ML = torch.zeros(blocks, self.case.block, dtype=torch.long)
        regulariser = self.case.regulariser

        def side(model: LanguageModel) -> Side:
            return Side(model.hidden(ids_ML[:, :-1]).flatten(0, 1), model.head())

        with torch.no_grad(), self.ledger.purpose("teacher's pass"):
            teacher = side(self.teacher) if regulariser.needs else None
        self._pass(regulariser, lambda: side(self.student), teacher, ids_ML[:, 1:].flatten(), {})

    def _pass(self, objective, side, teacher, ids_N, constants) -> None:
        ledger = self.ledger

        with ledger.purpose("activations"):
            student = side()
        with ledger.purpose("loss"):
            loss = self.case.linear_loss(objective, student, teacher, ids_N, constants, normaliser=1).loss
        del student  # only the graph holds it
        with ledger.purpose("backward"):
            loss.backward()
        ledger.claim((each.grad for each in self.trained if each.grad is not None), "gradients")


def _constants(case: Case) -> list[str]:
    """The names of what the objective computes of a rollout, from one of a token."""
    with unset_fake_temporarily():
        one = torch.zeros(1, 1)
        rollout = Rollout(one.long(), one == 0, one.long(), one == 0, *((one, one) if case.rollouts else ()))
        rollout = replace(rollout, behaviour_logprobs_BR=one)
        return [*(prepared(rollout, case.objective).constants if case.rollouts else case.objective.prepare(rollout))]
