r"""Joint adaptation: a LoRA and low-rank edits of activations trained together, kept out of each other's way.

The LoRA adds :math:`B A m` to the stream that the edit :math:`U \varphi(D x / s) + b` reads and writes. Three forms:

* ``none``: they interact by :math:`U D B A m / s` (linear edits);
* ``input``: :math:`D B = 0`, the edit does not see what the LoRA of its block writes (the authors' released code);
* ``output``: :math:`U^\top B = 0` and :math:`b^\top B = 0`, the two write at right angles (a third party's summary).

B stands for all of the block's maps that write where the edit acts, side by side: the attention's output projection
for ``attn_out`` and ``resid_mid``, the down projection for ``mlp_out``, both for ``resid_post``. Neither form implies
the other (P33). A zero B, as at the first step, constrains nothing.

A constraint holds after every optimizer step: gradients are projected before it; parameters and first moments after
it, since B has moved and Adam scales every entry by itself. Second moments are sizes, not directions, and stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from steerscope.equivalence.subspaces import columns_of
from steerscope.errors import InputError, did_you_mean
from steerscope.files import read_text, write_text
from steerscope.finite import require_finite_record
from steerscope.models.calls import calls_of
from steerscope.models.hooks import reading
from steerscope.models.wrappers import in_evaluation_mode, is_peft
from steerscope.sites import Site
from steerscope.steering.families.low_rank import LinearAdapter
from steerscope.steering.meeting_loras import loras_meeting
from steerscope.steering.model import SteeringModel

CONSTRAINTS = ("none", "input", "output")
# Beside the checkpoints of a Trainer.
_HISTORY = "joint_history.json"
# What optimizers call their first moments.
FIRST_MOMENTS = ("exp_avg", "momentum_buffer")


@dataclass(frozen=True)
class Overlap:
    """How an edit and the LoRA of its block lie to each other.

    Attributes:
        site: Where the edit is.
        read_angles: Principal angles, in degrees, between the rows of D and the columns of B; empty for a zero B.
        write_angles: The same between the columns of U (with b) and those of B.
        read_product: ``|D Q| / |D|`` with Q an orthonormal basis of B's columns, zero under ``input``.
        write_product: ``|U^T Q| / |U|`` (U with b), zero under ``output``.
    """

    site: str
    read_angles: tuple[float, ...]
    write_angles: tuple[float, ...]
    read_product: float
    write_product: float


class JointConstraint:
    """Holds one of the three forms while a LoRA and low-rank edits are trained.

    Args:
        steering: A steering model of family ``linear`` or ``nonlinear`` on top of a PEFT LoRA.
        constraint: ``none``, ``input`` or ``output``.

    Raises:
        InputError: Another family, or a site where constraints mean nothing; with a constraint, no LoRA that writes
            where an edit acts, or a norm between the LoRA and the stream.
    """

    def __init__(self, steering: SteeringModel, constraint: str) -> None:
        if constraint not in CONSTRAINTS:
            hint = did_you_mean(str(constraint), list(CONSTRAINTS))
            raise InputError(f"unknown constraint {constraint!r}.{hint} Valid: {', '.join(CONSTRAINTS)}.")
        if not is_peft(steering.base_model):
            raise InputError("joint adaptation needs a LoRA underneath; wrap the model with peft.get_peft_model first.")
        self.steering, self.constraint = steering, constraint
        self._loras = {site: loras_meeting(steering, site, constraint) for site in steering.sites}

    # --- projections ---

    def basis(self, site: Site | str) -> Tensor:
        """Return an orthonormal basis, float64 ``(d_model k)``, of what the LoRA of the edit's block writes."""
        parts = [b for lora in self._loras[self.steering.site_map.resolve(site)] for b, _, _ in lora.parts]
        # Each B by itself first: a B much smaller than another one counts as much.
        # One that diverged has no columns; whoever trains finds it by its numbers, not by an error from here.
        finite = [b.detach().double() for b in parts if bool(torch.isfinite(b).all())]
        if not finite:
            edit = next(self.steering.edit_at(site).parameters())
            return torch.zeros(self.steering.site_map.d_model, 0, dtype=torch.float64, device=edit.device)
        columns = torch.cat([columns_of(b) for b in finite], dim=1)
        return columns_of(columns) if columns.shape[1] else columns

    def _constrained(self) -> Iterator[tuple[nn.Parameter, Tensor, bool]]:
        """Yield every constrained parameter with the basis and whether its rows (D) or columns (U, b) are."""
        if self.constraint == "none":
            return
        for site in self.steering.sites:
            edit = self.steering.edit_at(site)
            assert isinstance(edit, LinearAdapter)
            basis = self.basis(site)
            if self.constraint == "input":
                yield edit.D, basis, True
                continue
            yield edit.U, basis, False
            if edit.b is not None:
                yield edit.b, basis, False

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Take what a step would undo out of the gradients; call before the optimizer's step."""
        for parameter, basis, by_rows in self._constrained():
            if parameter.grad is not None:
                parameter.grad.copy_(_projected(parameter.grad, basis, by_rows))

    @torch.no_grad()
    def project(self, optimizer: Optimizer | None = None) -> None:
        """Restore the constraint in parameters, and in an optimizer's first moments; call after its step.

        Cost: one singular value decomposition of ``d_model x (ranks)`` per site.
        """
        state: Mapping[Any, Any] = {} if optimizer is None else getattr(optimizer, "optimizer", optimizer).state
        for parameter, basis, by_rows in self._constrained():
            parameter.copy_(_projected(parameter, basis, by_rows))
            for name in FIRST_MOMENTS:
                moment = state.get(parameter, {}).get(name)
                if isinstance(moment, Tensor):
                    moment.copy_(_projected(moment, basis, by_rows))

    def attach(self, optimizer: Optimizer) -> None:
        """Hold the constraint around every step of an optimizer, from now on."""
        self.project(optimizer)
        optimizer.register_step_pre_hook(lambda *_: self.project_gradients())
        optimizer.register_step_post_hook(lambda found, *_: self.project(found))

    def callback(self, batch: Mapping[str, Tensor] | None = None) -> JointCallback:
        """Return what holds the constraint under transformers' Trainer, and keeps a history."""
        return JointCallback(self, batch)

    # --- measurements ---

    @torch.no_grad()
    def overlaps(self) -> tuple[Overlap, ...]:
        """Return how every edit and the LoRA of its block lie to each other."""
        found = []
        for site in self.steering.sites:
            edit = self.steering.edit_at(site)
            assert isinstance(edit, LinearAdapter)
            down, up, basis = edit.D.double(), edit.U.double(), self.basis(site)
            if edit.b is not None:
                up = torch.cat([up, edit.b.double()[:, None]], dim=1)
            found.append(
                Overlap(
                    site=str(site),
                    read_angles=principal_angles(down.T, basis),
                    write_angles=principal_angles(up, basis),
                    read_product=_product(down.T, basis),
                    write_product=_product(up, basis),
                )
            )
        return tuple(found)

    @torch.no_grad()
    def interaction(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Return, per site, how much of the edit comes from what the LoRA of its block wrote.

        ``|d(x) - d(x - B A m)| / |d(x)|`` over the edited tokens of a batch: for linear edits the numerator is
        ``U D B A m / s``. Zero where the edit is zero.

        Returns:
            Parts from 0 up, by site.

        Cost: one forward pass.
        """
        steering = self.steering
        inputs = {site: [lora.reads for lora in loras] for site, loras in self._loras.items()}
        wanted = {reads for sites in inputs.values() for reads in sites}
        edits: dict[Site, nn.Module] = {site: steering.edit_at(site) for site in steering.sites}
        with (
            in_evaluation_mode(steering),
            calls_of(edits.values()) as calls,
            reading(steering.site_map, wanted) as found,
        ):
            steering(**batch, use_cache=False)
        seen = {site: calls[edit].args[0] for site, edit in edits.items()}
        shares = {}
        mask = batch.get("attention_mask")  # what stands at padding is not read by anything, and may be no number
        tokens = torch.ones(batch["input_ids"].shape, dtype=torch.bool) if mask is None else mask != 0
        edited = steering.edited_tokens
        tokens = tokens if edited is None else tokens & edited.to(tokens.device)
        for site, loras in self._loras.items():
            edit, read = steering.edit_at(site), seen[site][tokens]
            written = torch.zeros_like(read)
            for lora in loras:
                for b, a, scaling in lora.parts:
                    written += (scaling * (found[lora.reads][tokens].to(a.dtype) @ a.T @ b.T)).to(written.dtype)
            whole = edit(read)
            size = float(whole.norm())
            shares[str(site)] = float((whole - edit(read - written)).norm()) / size if size else 0.0
        return shares


class JointCallback(TrainerCallback):
    """Holds a :class:`JointConstraint` under the Trainer; ``history`` has one entry per log.

    Entries hold the step and, over all sites, the smallest principal angles and the largest products of
    :class:`Overlap`, and the largest interaction where a batch was given.
    """

    def __init__(self, constraint: JointConstraint, batch: Mapping[str, Tensor] | None = None) -> None:
        self.constraint, self.batch = constraint, batch
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start with the constraint. A resumed run has it already: projecting again would move last bits."""
        if state.global_step == 0:
            self.constraint.project(kwargs.get("optimizer"))
            return
        kept = Path(args.output_dir) / _HISTORY
        if kept.exists():
            self.history = [
                one
                for one in json.loads(read_text(kept, "the history of the constraint"))
                if one["step"] <= state.global_step
            ]

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the history for a run that is resumed."""
        write_text(Path(args.output_dir) / _HISTORY, json.dumps(self.history, allow_nan=False))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Project the gradients."""
        self.constraint.project_gradients()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Project parameters and moments."""
        self.constraint.project(kwargs.get("optimizer"))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure at every log of the Trainer."""
        self.measure(state.global_step, args.learning_rate)

    def measure(self, step: int, learning_rate: float) -> None:
        """Add what can be measured after a step to the history, unless the training diverged.

        Args:
            step: Optimizer steps done.
            learning_rate: The rate of the training, for the message if it diverged.
        """
        if not all(bool(torch.isfinite(p).all()) for p in self.constraint.steering.parameters() if p.requires_grad):
            return
        overlaps = self.constraint.overlaps()
        entry = {
            "step": float(step),
            "smallest_read_angle": min((a for o in overlaps for a in o.read_angles), default=90.0),
            "smallest_write_angle": min((a for o in overlaps for a in o.write_angles), default=90.0),
            "largest_read_product": max(o.read_product for o in overlaps),
            "largest_write_product": max(o.write_product for o in overlaps),
        }
        if self.batch is not None:
            entry["largest_interaction"] = max(self.constraint.interaction(self.batch).values())
        advice = f"Training diverged with learning rate {learning_rate:g}: give a smaller one."
        require_finite_record("the overlap of LoRA and edits", entry, advice)
        self.history.append(entry)


def principal_angles(first: Tensor, second: Tensor) -> tuple[float, ...]:
    """Return the principal angles, in degrees and rising, between the columns of two matrices ``(d k)``.

    Empty where one of them is zero.

    Args:
        first: ``(d k)``.
        second: ``(d k')``, of as many rows.

    Returns:
        Degrees from 0 to 90, as many as the smaller rank.
    """
    left, right = columns_of(first), columns_of(second) if second.shape[1] else second
    if not left.shape[1] or not right.shape[1]:
        return ()
    cosines = torch.linalg.svdvals(left.T @ right).clamp(max=1)
    return tuple(math.degrees(math.acos(float(value))) for value in cosines)


def _projected(tensor: Tensor, basis: Tensor, by_rows: bool) -> Tensor:
    """Return the tensor without what its rows ``(r d)``, or its columns ``(d ...)``, have in the basis ``(d k)``."""
    precise = tensor.double()
    if by_rows:
        return (precise - precise @ basis @ basis.T).to(tensor.dtype)
    return (precise - basis @ (basis.T @ precise)).to(tensor.dtype)


def _product(first: Tensor, basis: Tensor) -> float:
    """Return the share (norm) of the columns of ``first`` that lies in the basis."""
    size = float(first.norm())
    return float((basis.T @ first).norm()) / size if size else 0.0
