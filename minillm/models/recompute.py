"""Gradient checkpointing: activations are computed again instead of kept."""

from __future__ import annotations

from transformers import PreTrainedModel

from minillm.common.errors import ModelError


def recompute_activations(network: PreTrainedModel) -> None:
    """Let each layer keep only its input in training mode; its backward pass computes the rest again.

    Raises:
        ModelError: the family does not support it.
    """
    if not network.supports_gradient_checkpointing:
        raise ModelError(
            f"{network.config.model_type}: cannot do without activations; set gradient_checkpointing=false"
        )
    # Nothing is drawn in a forward pass, so there is no state of random numbers to keep.
    network.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    network.disable_input_require_grads()  # only reentrant checkpoints need it
