"""The two random models and the prompts that ours and the peers are measured on; needs transformers only.

Student 15.6 M and teacher 50 M parameters, LLaMA architecture, vocabulary 49,152 (that of SmolLM2), tied embeddings.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 49_152
_SMOLLM2 = dict(
    hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, rope_theta=100_000
)
SIZES = {
    "student": dict(hidden_size=256, num_hidden_layers=4, intermediate_size=640, num_attention_heads=4),
    "teacher": dict(hidden_size=512, num_hidden_layers=8, intermediate_size=1344, num_attention_heads=8),
    "SmolLM2-135M": _SMOLLM2 | dict(num_hidden_layers=30),
    "SmolLM2-135M, 26 layers": _SMOLLM2 | dict(num_hidden_layers=26),
}


def make_model(name: str, vocabulary: int = VOCABULARY, device: str = "cpu") -> LlamaForCausalLM:
    """Random weights, the same in every process."""
    torch.manual_seed(list(SIZES).index(name))
    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **SIZES[name],
    )
    return LlamaForCausalLM(config).eval().to(device)


def make_prompts(n: int, length: int) -> torch.Tensor:
    """[n, length] token ids; 0 is padding."""
    return torch.randint(1, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(0))
