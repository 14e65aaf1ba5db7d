"""Tiny models of many families, by transformers' own configs. Sizes are the least that each family's code takes."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from minillm.models.families import without_noise

ROWS = 64
WINDOW = 8
_BASE = dict(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=4, vocab_size=ROWS,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
_KV = _BASE | dict(num_key_value_heads=2, intermediate_size=48, max_position_embeddings=256)
_HEADS, _SLIDING = _KV | dict(head_dim=8), _KV | dict(sliding_window=WINDOW)
_EXPERTS = _KV | dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
_OLD = dict(n_embd=32, n_layer=4, n_head=4, vocab_size=ROWS, bos_token_id=None, eos_token_id=None)

SIZES = {
    "llama": _KV,
    "qwen2": _KV,
    "qwen3": _HEADS | dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "mistral": _SLIDING,
    "gemma": _HEADS,
    "gemma2": _HEADS | dict(sliding_window=WINDOW, final_logit_softcapping=5.0),
    "gemma3_text": _HEADS | dict(sliding_window=WINDOW),
    "phi": _KV,
    "phi3": _SLIDING,
    "olmo2": _KV,
    "granite": _KV | dict(logits_scaling=4.0, embedding_multiplier=2.0),
    "cohere2": _SLIDING,
    "starcoder2": _SLIDING,
    "smollm3": _KV,
    "gpt_neox": _BASE | dict(intermediate_size=64),
    "gpt_neo": dict(
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        vocab_size=ROWS,
        attention_types=[[["global", "local"], 2]],
        window_size=WINDOW,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "gptj": _OLD | dict(rotary_dim=4),
    "gpt2": _OLD | dict(n_positions=256),
    "bloom": dict(hidden_size=32, n_layer=4, n_head=4, vocab_size=ROWS, bos_token_id=None, eos_token_id=None),
    "mpt": dict(d_model=32, n_layers=4, n_heads=4, vocab_size=ROWS, expansion_ratio=2, max_seq_len=256),
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS | dict(shared_expert_intermediate_size=32, decoder_sparse_step=1),
    "gpt_oss": _EXPERTS | dict(head_dim=8, sliding_window=WINDOW),
}
_MOE = _KV | dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MORE = {
    "apertus": _KV,
    "arcee": _KV,
    "biogpt": _BASE | dict(intermediate_size=48, max_position_embeddings=256),
    "bitnet": _KV,
    "codegen": _OLD | dict(rotary_dim=4),
    "cohere": _KV,
    "ctrl": dict(n_embd=32, n_layer=4, n_head=4, dff=48, vocab_size=ROWS, n_positions=256),
    "deepseek_v3": _MOE | dict(
        num_key_value_heads=4, n_shared_experts=1, n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=1,
    ),
    "diffllama": _KV,
    "ernie4_5": _KV,
    "exaone4": _SLIDING,
    "falcon": _BASE | dict(alibi=False, new_decoder_architecture=False, multi_query=True),
    "flex_olmo": _EXPERTS,
    "gemma3n_text": _HEADS | dict(
        sliding_window=WINDOW, vocab_size_per_layer_input=ROWS, hidden_size_per_layer_input=8, laurel_rank=8,
        altup_num_inputs=2, num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gemma4_text": _HEADS | dict(
        sliding_window=WINDOW, vocab_size_per_layer_input=ROWS, hidden_size_per_layer_input=8
    ),
    "glm": _HEADS,
    "glm4": _HEADS,
    "gpt_bigcode": _OLD | dict(n_positions=256),
    "granitemoe": _EXPERTS,
    "hunyuan_v1_dense": _HEADS,
    "jetmoe": dict(
        hidden_size=32, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8, intermediate_size=48,
        vocab_size=ROWS, num_local_experts=4, num_experts_per_tok=2,
    ),
    "nanochat": _KV,
    "nemotron": _KV,
    "olmo": _KV,
    "olmo3": _SLIDING,
    "olmoe": _EXPERTS,
    "opt": dict(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32,
        vocab_size=ROWS, max_position_embeddings=256, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    ),
    "persimmon": _KV,
    "qwen3_moe": _EXPERTS | dict(head_dim=8, decoder_sparse_step=1),
    "seed_oss": _HEADS,
    "stablelm": _KV,
    "vaultgemma": _HEADS | dict(sliding_window=WINDOW),
    "xglm": dict(
        d_model=32, num_layers=4, attention_heads=4, ffn_dim=48, vocab_size=ROWS, max_position_embeddings=256
    ),
}  # fmt: skip
# Families without keys and values of all tokens, or with another plan of attention.
REFUSED = {
    "mamba": dict(hidden_size=32, num_hidden_layers=2, vocab_size=ROWS, state_size=8),
    "jamba": _EXPERTS | dict(use_mamba_kernels=False, attn_layer_offset=1, attn_layer_period=2, mamba_d_state=8),
    "lfm2": _KV | dict(layer_types=["conv", "full_attention"] * 2, conv_L_cache=3),
    "rwkv": dict(hidden_size=32, num_hidden_layers=2, vocab_size=ROWS, attention_hidden_size=32),
    "qwen3_next": _EXPERTS | dict(head_dim=8),
    "llama4_text": _HEADS | dict(attention_chunk_size=WINDOW, num_local_experts=2, intermediate_size_mlp=48),
    "recurrent_gemma": _KV,
    "phimoe": _EXPERTS,
    "t5": dict(vocab_size=ROWS, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4),
}


def family_config(family, **more):
    return AutoConfig.for_model(family, **(SIZES | MORE | REFUSED)[family] | more)


def family_model(family, *, seed=0, dtype=torch.float32, noise=False, **more):
    """Weights so large that attention matters; logits with a deviation of 2."""
    return model_of(family_config(family, **more), seed=seed, dtype=dtype, noise=noise)


def model_of(config, *, seed=0, dtype=torch.float32, noise=False):
    if not noise:
        without_noise(config)
    torch.manual_seed(seed)
    return sharpened(AutoModelForCausalLM.from_config(config).eval()).to(dtype)


@torch.no_grad()
def sharpened(network):
    for parameter in network.parameters():
        if parameter.dim() > 1 and parameter.std() > 0:
            parameter.mul_(0.25 / parameter.std())
    head, ends = network.get_output_embeddings().weight, network.get_input_embeddings().weight
    if head.data_ptr() != ends.data_ptr():
        head.mul_(2.0 / network(input_ids=torch.arange(3, 30)[None], use_cache=False).logits.std())
    return network


def multimodal(seed=0, layers=2):
    """Gemma 3 with a vision tower, its text model in a nested config, as AutoModelForCausalLM gives it."""
    torch.manual_seed(seed)
    text = _HEADS | dict(num_hidden_layers=layers, sliding_window=WINDOW)
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2, image_size=28,
        patch_size=14,
    )  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=63, boi_token_index=61,
        eoi_token_index=62,
    )  # fmt: skip
    return sharpened(Gemma3ForConditionalGeneration(config).eval())


def longrope(original=16, seed=0):
    """Phi-3 whose rotary factors change beyond `original` tokens."""
    rope = dict(
        rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[4.0] * 4,
        original_max_position_embeddings=original,
    )  # fmt: skip
    config = AutoConfig.for_model("phi3", **_KV, original_max_position_embeddings=original, rope_parameters=rope)
    return model_of(config, seed=seed)
